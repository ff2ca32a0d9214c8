"""The report: complete, self-contained, escaped, and there even when much is missing."""

import ast
import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import fsspec
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from markupsafe import escape
from PIL import Image

import raydapt.report
from raydapt.errors import UserError
from raydapt.methods.table import GROUPS
from raydapt.report.gallery import choose_gallery, image_uri
from raydapt.report.numbers import format_cell
from raydapt.report.page import write_report
from raydapt.report.sections import Card, Cards, Column, Facts, Line, Section, Table, Text, Thumbnail
from raydapt.run.accuracy import evaluate
from raydapt.run.reporting import write_run_report
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree

NAMES = ["River", "Forest", "Sea or Lake", "Highway"]
HOSTILE = [
    "<b>bold</b>",
    "{}",
    "{{ 7*7 }}",
    "a/b",
    "🌲 forest",
    "$x_1$ ^",
    "<script>alert(1)</script>",
    '"><img src=x>',
    "日本",
]
VOID = {"meta", "img", "br", "source", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags and text, and checks that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def every_group():
    """Run folders of earlier releases hold the settings of every method."""
    return {name: as_tree(kind()) for name, kind in GROUPS.items()}


def make_run(folder, names=NAMES, images=200, *, labels=True, method="cpl", paradigm="ul", unseen=None, **more):
    """A run folder as the pipeline writes it, with made-up predictions; returns the metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    classes = len(names)
    truth_N, other_N = rng.integers(0, classes, images), rng.integers(0, classes, images)
    before_N = np.where(rng.random(images) < 0.4, truth_N, other_N)
    after_N = before_N if method == "zero_shot" else np.where(rng.random(images) < 0.5, truth_N, before_N)
    ids = [f"{i:016x}" for i in range(images)]
    table = pa.table(
        {
            "id": ids,
            "path": [f"{names[t]}/{i}.png" for i, t in enumerate(truth_N)],
            "split": ["test"] * images,
            "label": pa.array([names[t] if labels else None for t in truth_N], pa.string()),
            "zero_shot": [names[c] for c in before_N],
            "zero_shot_confidence": rng.random(images),
            "predicted": [names[c] for c in after_N],
            "confidence": rng.random(images),
        }
    )
    pq.write_table(table, folder / "predictions.parquet")
    seen = None if unseen is None else [c for c in range(classes) if c not in unseen]
    before, after = (
        evaluate(guess_N, truth_N if labels else None, classes, seen, unseen) for guess_N in (before_N, after_N)
    )
    metrics = {
        "name": "run-1",
        "method": method,
        "paradigm": paradigm,
        "dataset": "eurosat",
        "classes": classes,
        "seed": 0,
        "class_names": names,
        "zero_shot": before.as_dict(),
        "adapted": after.as_dict(),
        "pseudo_labels": {"selected": 0, "accuracy": None},
        "label_free_score": 0.5,
        "rounds": [],
        "errors": {},
        "stages": {
            "features": {
                "seconds": 75.0,
                "rows": 900,
                "rows_per_s": 12.0,
                "reused": False,
                "model_share": 0.8,
                "share_of_peak": 0.45,
            }
        },
        "evaluation": {"images": after.images, "transductive": False, "confusion": None, "per_class": []},
    }
    if labels:
        counts_C = np.bincount(truth_N, minlength=classes).tolist()
        recalls = zip(names, counts_C, before.per_class, after.per_class, strict=True)
        keys = ("name", "images", "zero_shot", "adapted")
        metrics["evaluation"]["confusion"] = after.confusion_CC.tolist()
        metrics["evaluation"]["per_class"] = [dict(zip(keys, recall, strict=True)) for recall in recalls]
    metrics |= more
    (folder / "metrics.json").write_text(json.dumps(metrics))
    config = as_tree(Config()) | every_group() | {"method": method}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2.13"}}))
    return metrics


def without_pictures(folder):
    """Leaves out what figures are drawn from, where a test is about words."""
    (folder / "predictions.parquet").unlink()
    return folder


def add_training(folder, names=NAMES, rounds=2):
    """Adds rounds, curves (the last line cut short), pseudo-labels and a gallery."""
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["rounds"] = [{"round": r, "selected": 10 * (r + 1), "accuracy": 71.5 - r} for r in range(rounds)]
    metrics["train"] = {"images_per_s": 1234.5, "seconds": 30.0, "workers": 2}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    lines = [
        {"step": i, "round": i // 20, "loss": 1 / (i + 1), "learning_rate": 0.1, "images_per_s": 9} for i in range(40)
    ]
    lines[7]["loss"] = None
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 41, "lo')
    table = pq.read_table(folder / "predictions.parquet")
    ids = table["id"].to_pylist()[:6]
    pseudo = {"round": [0, 0, 0, 1, 1, 1], "id": ids, "classes": [names[:2]] * 6, "weights": [[1.0, 1.0]] * 6}
    pq.write_table(pa.table(pseudo), folder / "pseudo_labels.parquet")
    chosen = choose_gallery(table)
    gallery = {"id": list(chosen), "image": [thumbnail()] * len(chosen), "kind": list(chosen.values())}
    pq.write_table(pa.table(gallery | {"path": [f"{names[-1]}.png"] * len(chosen)}), folder / "gallery.parquet")


def thumbnail(kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


def page_of(folder):
    path = write_run_report(folder)
    assert path.endswith("/report.html")
    with fsspec.open(f"{folder}/report.html", encoding="utf-8", mode="rt") as file:
        return file.read()


def check_contained(text):
    """No scripts, no handlers, no addresses but data: and anchors."""
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(page.tags)
    for _, key, value in page.attributes:
        assert not key.startswith("on")
        if key in ("src", "href", "srcset"):
            assert value.startswith(("data:image/", "#"))
    assert "http" not in re.sub(r'<meta http-equiv="Content-Security-Policy"', "", text).lower()
    assert "url(" not in text
    policy = next(value for tag, key, value in page.attributes if tag == "meta" and "default-src" in (value or ""))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    return page


@pytest.mark.slow
def test_a_full_report_shows_every_part(tmp_path):
    metrics = make_run(tmp_path / "run", errors={"corrupt": 3})
    add_training(tmp_path / "run")
    page = check_contained(page_of(tmp_path / "run"))
    for part in ("Top-1 accuracy", "Before and after, per class", "Most confused", "Matrix after adaptation"):
        assert part in page.text
    for part in ("Pseudo-labels per round", "Training", "Most changed", "Most confident", "Time", "Environment"):
        assert part in page.text
    assert f"{metrics['zero_shot']['top1']:.1f} → {metrics['adapted']['top1']:.1f}" in page.text
    assert "3 input rows could not be read and were left out (corrupt: 3)." in page.text
    assert "1 min 15 s" in page.text
    assert "training (2 workers)" in page.text
    images = [(key, value) for tag, key, value in page.attributes if tag == "img"]
    assert sum(key == "src" for key, _ in images) == sum(key == "alt" and bool(value) for key, value in images)


def test_headline_and_pairs_equal_naive_counts(tmp_path):
    make_run(tmp_path)
    text = Page(page_of(tmp_path)).text
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    repaired = sum(r["zero_shot"] != r["label"] == r["predicted"] for r in rows)
    broken = sum(r["zero_shot"] == r["label"] != r["predicted"] for r in rows)
    assert f"Images repaired / broken{repaired} / {broken}" in text
    pairs = {}
    for r in rows:
        if r["label"] != r["predicted"]:
            pairs[r["label"], r["predicted"]] = pairs.get((r["label"], r["predicted"]), 0) + 1
    order = sorted(pairs, key=lambda pair: (-pairs[pair], NAMES.index(pair[0]), NAMES.index(pair[1])))
    truth, guess = order[0]
    before = sum(r["label"] == truth and r["zero_shot"] == guess for r in rows)
    share = 100 * pairs[truth, guess] / sum(r["label"] == truth for r in rows)
    words = Page(page_of(tmp_path).replace("</th>", " </th>").replace("</td>", " </td>")).text
    assert f" {truth} {guess} {pairs[truth, guess]} {share:.1f} {before} " in words.split("zero-shot did so")[1]


@pytest.mark.slow
def test_hostile_names_are_text_everywhere(tmp_path):
    evil = "<script>alert('x')</script>"
    make_run(tmp_path, HOSTILE, 300, dataset=evil, name=evil, errors={evil: 2}, stages={evil: {"seconds": 1.0}})
    add_training(tmp_path, HOSTILE)
    (tmp_path / "environment.json").write_text(json.dumps({"command": f"raydapt run {evil}", evil: {evil: "\ud800"}}))
    text = page_of(tmp_path)
    page = check_contained(text)
    assert "<script" not in text.lower()
    assert "<b>bold" not in text
    for name in HOSTILE:
        assert f"<bdi>{escape(name)}</bdi>" in text
        assert name in page.text


def test_without_labels_the_report_says_why_figures_are_missing(tmp_path):
    make_run(tmp_path, labels=False)
    page = check_contained(page_of(tmp_path))
    assert "The images have no labels" in page.text
    assert "Predictions per class" in page.text
    assert "Predictions changed" in page.text
    assert "Accuracy per class needs labels" in page.text
    assert "Top-1" not in page.text


def test_zero_shot_has_no_before_and_after(tmp_path):
    make_run(tmp_path, method="zero_shot")
    page = check_contained(page_of(tmp_path))
    assert "nothing was adapted" in page.text
    assert "→" not in page.text
    assert "Pseudo-labels" not in page.text


def test_metrics_alone_make_a_report(tmp_path):
    make_run(tmp_path)
    for name in ("predictions.parquet", "config.yaml", "environment.json"):
        (tmp_path / name).unlink()
    page = check_contained(page_of(tmp_path))
    assert "Matrix after adaptation" in page.text


def test_trzsl_leads_with_the_harmonic_mean(tmp_path):
    make_run(tmp_path, paradigm="trzsl", unseen=[1, 3], unseen_classes=["Forest", "Highway"])
    text = Page(page_of(tmp_path)).text
    assert "Harmonic mean" in text
    assert "Unseen classes" in text
    assert "Forest unseen" in text


def test_warnings_name_what_weakens_the_figures(tmp_path):
    evaluation = {
        "images": 200,
        "transductive": True,
        "confusion": None,
        "per_class": [{"name": "River", "images": 3, "zero_shot": 90.0, "adapted": 30.0}]
        + [{"name": name, "images": 50, "zero_shot": 90.0, "adapted": 30.0} for name in NAMES[1:]],
    }
    worse = {"zero_shot": {"top1": 60.0}, "adapted": {"top1": 40.0}}
    make_run(tmp_path, [*NAMES, "Never seen"], class_names=[*NAMES, "Never seen"], evaluation=evaluation, **worse)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    for row in table:
        row["predicted"] = "River"
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "predictions.parquet")
    text = Page(page_of(tmp_path)).text
    assert "worse than zero-shot" in text
    assert "Transductive evaluation" in text
    assert "Never predicted: “Forest”, “Sea or Lake”, “Highway”, “Never seen”." in text
    assert "Fewer than 10 evaluated images, so their figures say little: “River”." in text
    assert "Lost 20 points or more: “Forest”, “Sea or Lake”, “Highway”." in text


@pytest.mark.slow
def test_a_column_of_true_classes_goes_before_labels_worded_otherwise(tmp_path):
    make_run(tmp_path)
    before = page_of(tmp_path)
    table = pq.read_table(tmp_path / "predictions.parquet")
    labels = pa.array([f"label {label}" for label in table["label"].to_pylist()])
    table = table.append_column("class", table["label"]).set_column(3, "label", labels)
    pq.write_table(table, tmp_path / "predictions.parquet")
    assert page_of(tmp_path) == before


@pytest.mark.slow
def test_a_thousand_classes_stay_readable(tmp_path):
    names = [f"class {c}" for c in range(1000)]
    make_run(tmp_path, names, 5000)
    text = page_of(tmp_path)
    page = check_contained(text)
    for part in ("Gained most", "Lost most", "Weakest after adaptation", "All 1,000 classes"):
        assert part in page.text
    assert "The 25 classes of 1,000 that take part in the most mistakes" in page.text
    assert len(text) < 2_000_000


@pytest.mark.slow
def test_the_report_works_on_any_filesystem_and_twice_gives_the_same(tmp_path):
    make_run(tmp_path)
    add_training(tmp_path)
    memory = fsspec.filesystem("memory")
    for file in tmp_path.iterdir():
        memory.pipe_file(f"/report-test/{file.name}", file.read_bytes())
    first = page_of("memory://report-test")
    assert first == page_of(tmp_path)


def test_a_folder_that_is_no_run_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no metrics"):
        write_report(tmp_path / "absent")


def test_figures_leave_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    make_run(tmp_path)
    page_of(tmp_path)
    assert dict(matplotlib.rcParams) == before


def naive_gallery(rows, per_class, changed):
    """Takes the surest image of each class in turn."""

    def in_turn(rows, turns):
        queues = {}
        for row in sorted(rows, key=lambda r: -r["confidence"]):
            queues.setdefault(row["predicted"], []).append(row)
        for turn in range(turns):
            heads = [queue[turn] for queue in queues.values() if len(queue) > turn]
            yield from sorted(heads, key=lambda r: -r["confidence"])

    chosen = {
        r["id"]: "changed" for r in list(in_turn([r for r in rows if r["predicted"] != r["zero_shot"]], 99))[:changed]
    }
    rest = [r for r in rows if r["id"] not in chosen]
    return chosen | {r["id"]: "confident" for r in in_turn(rest, per_class)}


def test_choose_gallery_equals_the_naive_choice(tmp_path):
    make_run(tmp_path)
    table = pq.read_table(tmp_path / "predictions.parquet")
    found = choose_gallery(table, per_class=2, changed=7)
    assert list(found.items()) == list(naive_gallery(table.to_pylist(), 2, 7).items())
    assert choose_gallery(table.slice(0, 0)) == {}
    assert len(choose_gallery(pa.concat_tables([table, table]), per_class=2, changed=7)) == len(found)
    assert len(choose_gallery(table, per_class=50, changed=0, most_confident=9)) == 9


def test_only_known_image_formats_are_embedded():
    for kind, mime in (("PNG", "png"), ("JPEG", "jpeg"), ("GIF", "gif"), ("WEBP", "webp")):
        data = thumbnail(kind)
        assert image_uri(data) == f"data:image/{mime};base64,{base64.b64encode(data).decode()}"
    assert image_uri(b"<svg onload='alert(1)'/>") is None
    assert image_uri(b"") is None
    assert image_uri(thumbnail() + bytes(10**6)) is None


@pytest.mark.slow
def test_synthetic_images_stand_beside_real_ones_of_their_class(tmp_path):
    names = [*NAMES[:3], '"><img src=x>']
    per_class = [{"name": name, "images": 5, "accepted": 40.0 + 5 * c} for c, name in enumerate(names)]
    made = {"images": 20, "accepted": 47.5, "top": 5, "accepted_in_top": 90.0, "per_class": per_class}
    make_run(tmp_path / "run", names, method="air", synthetic=made)
    add_training(tmp_path / "run", names)
    rows = {"class": [n for n in names for _ in range(3)], "index": [0, 1, 2] * 4, "image": [thumbnail()] * 12}
    pq.write_table(pa.table(rows), tmp_path / "run" / "synthetic.parquet")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    metrics["rounds"][0]["classifiers"] = {"text": 31.25, "images": 32.25, "both": 33.25}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    text = page_of(tmp_path / "run")
    page = check_contained(text)
    assert "Zero-shot takes 47.5 % of them" in page.text
    for words in ("text alone right %", "synthetic images alone right %", "both right %", "31.2", "32.2", "33.2"):
        assert words in page.text
    section = text.split('<section id="synthetic">')[1].split("</section>")[0]
    assert section.count('alt="synthetic image of') == 12
    assert section.count("<img") > 12  # real ones beside them
    assert "synthetic image of Forest" in section
    make_run(tmp_path / "plain")
    assert 'id="synthetic"' not in page_of(tmp_path / "plain")


@pytest.mark.parametrize(
    ("method", "shown", "hidden"),
    [
        ("air", ["air.fusion_weight", "cpl.alpha", "synthesis.steps", "lora.rank"], ["grip.rounds", "fair.crops"]),
        ("wca", ["fair.crops", "fair.temperature"], ["cpl.alpha", "train.epochs", "lora.rank"]),
        ("cpl", ["cpl.alpha", "train.epochs"], ["air.base", "fair.crops", "tune.trials", "caption.model"]),
        ("latteclip", ["latteclip.tune", "caption.model"], ["cpl.alpha", "synthesis.steps"]),
    ],
)
def test_the_settings_are_those_that_the_run_goes_by(tmp_path, method, shown, hidden):
    make_run(tmp_path, method=method)
    text = page_of(without_pictures(tmp_path))
    for name in shown:
        assert f"<bdi>{name}</bdi>" in text, name
    for name in hidden:
        assert f"<bdi>{name}</bdi>" not in text, name


def test_a_setting_of_the_base_that_was_changed_is_told_before_all_others(tmp_path):
    make_run(tmp_path, method="air")
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    tree["cpl"]["alpha"] = 0.123
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    different = page_of(without_pictures(tmp_path)).split("Settings other than the defaults")[1].split("</table>")[0]
    assert "<bdi>cpl.alpha</bdi>" in different
    assert "0.123" in different
    assert "cpl.beta" not in different


def test_the_head_says_what_was_learned(tmp_path):
    for method, learned in (("coreg", "two preact_resnet18 students"), ("cpl", "text prompt")):
        make_run(tmp_path / method, method=method)
        head = Page(page_of(without_pictures(tmp_path / method)).split("</header>")[0] + "</header></body></html>").text
        assert f"learned: {learned}" in head
    make_run(tmp_path / "wca", method="wca")
    assert "learned:" not in page_of(without_pictures(tmp_path / "wca"))


def test_zero_shots_own_scores_stand_beside_the_runs(tmp_path):
    scores = {"agreement": 0.75, "class_balance": 0.9, "stability": None}
    make_run(tmp_path, scores=scores, zero_shot_scores={"agreement": 0.5, "class_balance": 0.95})
    text = page_of(without_pictures(tmp_path))
    words = Page(text.split('<section id="scores">')[1].split("</section>")[0].replace("</t", " </t")).text
    assert "agreement 0.500 0.750 0.250 " in words
    assert "class balance 0.950 0.900 −0.050 " in words
    assert " stability " not in words
    make_run(tmp_path / "old", scores=scores)
    words = Page(
        page_of(without_pictures(tmp_path / "old")).split('<section id="scores">')[1].split("</section>")[0]
    ).text
    assert "zero-shot" not in words.split("What the columns mean")[0]


def test_a_verdict_and_labels_that_are_no_class_stand_in_the_head(tmp_path):
    evil = "<script>alert(1)</script>"
    verdict = {"verdict": evil, "sentence": f"Prefer zero-shot {evil}.", "evidence": {"gain": {evil: 0.123456}}}
    left_out = [{"label": evil, "images": 1200, "nearest": "River"}, {"label": "sea", "images": 3, "nearest": None}]
    make_run(tmp_path, verdict=verdict, labels_left_out=left_out)
    text = page_of(without_pictures(tmp_path))
    page = check_contained(text)
    assert "<script" not in text
    head = text.split('<section id="classes">')[0]
    for words in ("Verdict without labels", "Labels that are no class", "1,200", "0.1235"):
        assert words in head
    assert f"Prefer zero-shot {evil}." in page.text
    make_run(tmp_path / "plain")
    plain = page_of(without_pictures(tmp_path / "plain"))
    assert "Verdict without" not in plain
    assert "Labels that are no class" not in plain


@pytest.mark.slow
def test_sections_are_drawn_in_their_place_and_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    make_run(tmp_path)
    add_training(tmp_path)
    columns = [Column(evil, evil), Column("n", "A count.", "count"), Column("share", "Of all.", "bar")]
    columns += [Column("gain", "Points.", "points"), Column("shown", "Images.", "images")]
    made = [Thumbnail(image=thumbnail(), alt=evil), Thumbnail(image=b"<svg onload=alert(1)>", alt="unknown format")]
    blocks = [
        Table(columns=columns, rows=[(evil, 1234, 0.25, -0.5, made), (None, None, None, None, None)], caption=evil),
        Cards(cards=[Card(image=thumbnail("JPEG"), alt=evil, title=evil, lines=[Line(text=evil, label=evil)])]),
        Cards(cards=[Card(image=b"no image", alt="", title="unknown format")]),
        Facts(facts=[(evil, evil)], note=evil),
        Text(text=evil, caption=evil),
    ]
    late = Section(anchor="late", title=evil, blocks=[Text(text="at the end")], place="after-gallery")
    write_report(tmp_path, [late, Section(anchor="own", title=evil, note=evil, blocks=blocks)])
    text = (tmp_path / "report.html").read_text()
    check_contained(text)
    assert "<script" not in text
    assert "unknown format" not in text
    order = [
        text.index(f'id="{anchor}"') for anchor in ("pseudo-labels", "own", "curves", "gallery", "late", "timings")
    ]
    assert order == sorted(order)
    own = text.split('id="own"')[1].split("</section>")[0]
    assert own.count("<img") == 2
    for words in ("1,234", "width:25.0%", "−0.5"):
        assert words in own


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells in a table of 1"):
        Table(columns=[Column("a", "A.")], rows=[("x", "y")])


def test_every_column_head_says_what_it_means(tmp_path):
    make_run(tmp_path, method="air", scores={"agreement": 0.5})
    add_training(tmp_path)
    text = page_of(tmp_path)
    heads = re.findall(r'<th scope="col".*?</th>', re.sub(r'<table class="matrix.*?</table>', "", text, flags=re.S))
    assert len(heads) > 25
    for head in heads:
        assert re.search(r'<abbr title="[^"]{9,}">[^<]+</abbr>', head) or 'class="axis"' in head, head


@pytest.mark.slow
def test_the_report_knows_no_method_and_no_room_above(tmp_path):
    allowed = {"report", "review", "store", "settings", "errors"}
    names = r"\b(zero_shot|ensemble|wca|fpl|grip|cpl|air|fair|coreg|latteclip)\b"
    room = Path(raydapt.report.__file__).parent
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            parts = [a.name for a in node.names] if isinstance(node, ast.Import) else [module]
            for part in parts:
                assert part.split(".")[0] not in ("torch", "ray"), path
                assert not part.startswith("raydapt.") or part.split(".")[1] in allowed, (path, part)
    for path in (room / "templates").iterdir():
        found = set(re.findall(names, path.read_text()))
        assert found <= {"zero_shot"}, path  # the answers before adaptation
    code = "import sys, raydapt.run.reporting; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "kind", "digits", "words"),
    [
        (-0.00001, "number", 4, "0.0000"),
        (-0.5, "percent", 1, "−0.5"),
        (None, "count", 0, "–"),
        (12345.6, "count", 1, "12,346"),
        (0.04, "points", 1, "±0.0"),
        (2.26, "points", 1, "+2.3"),
        (94.4, "rate", 1, "94"),
        (0.4219, "rate", 1, "0.42"),
        (125, "duration", 1, "2 min 05 s"),
    ],
)
def test_numbers_read_as_people_write_them(value, kind, digits, words):
    assert format_cell(value, kind, digits) == words
