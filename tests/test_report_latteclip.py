import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.test_report import check_contained, make_run, page_of

EVIL = "<script>alert('x')</script> 日本 " + 100 * "long "


def png():
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 200, 30)).save(sink, format="PNG")
    return sink.getvalue()


def add_latteclip(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    epochs = [
        {"epoch": e, "template": 0.5, "image": 0.25, "group": 0.25, "drift": 0.0123, "largest_drift": 0.0456}
        for e in range(1, 41)
    ]
    shares = {"captions": 90, "missing": 3, "name_class": 61.2, "name_any": 70.0}
    metrics["latteclip"] = {
        "epochs": epochs,
        "classes": [{"class": "small", "drift": 0.001}, {"class": EVIL, "drift": 0.0456}],
        "captions": {"images": shares, "groups": shares | {"name_class": None, "name_any": None}},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [
        {"id": "1", "path": EVIL, "image": png(), "zero_shot": EVIL, "image_caption": EVIL, "group_caption": None},
        {"id": "2", "path": "b", "image": b"broken", "zero_shot": "b", "image_caption": "", "group_caption": "c"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "captions.parquet")


def test_captions_shares_and_movement_are_shown_and_escaped(tmp_path):
    make_run(tmp_path, method="latteclip")
    add_latteclip(tmp_path)
    text = page_of(tmp_path)
    page = check_contained(text)
    for part in ("Texts and prototypes", "name their class %", "61.2", "0.0123", "0.0456", "25.0"):
        assert part in page.text
    assert "<script" not in text.lower()
    epochs = text.split("class prompt %")[1].split("</table>")[0]
    assert epochs.count("<tr>") <= 14  # forty epochs, told by a dozen
    assert '<td class="n">40</td>' in epochs


def test_without_captions_the_section_is_about_prototypes(tmp_path):
    make_run(tmp_path, method="latteclip")
    add_latteclip(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    del metrics["latteclip"]["captions"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "captions.parquet").unlink()
    page = check_contained(page_of(tmp_path))
    assert "name their class" not in page.text
    assert "Weights of the texts" in page.text
