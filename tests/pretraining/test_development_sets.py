from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pretraining import development_sets
from pretraining.development_sets import cartoon, faint, false_colours, grey, haze, scrawl, write_further, write_sets
from raydapt.stages.synthesis import png_bytes


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8))


def test_a_cartoon_has_few_colours_and_black_lines():
    half = np.zeros((24, 24, 3), np.uint8)
    half[:, 12:] = (250, 200, 60)
    drawn = np.asarray(cartoon(Image.fromarray(half)))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) <= 3
    assert (drawn[12, 11:13] == 0).all()
    assert drawn[12, 20].any()


def test_haze_takes_contrast_and_adds_blue():
    image = picture()
    hazy = np.asarray(haze(image)).astype(float)
    assert hazy.shape == (64, 64, 3)
    assert hazy.std() < np.asarray(image).std() / 2
    assert hazy[..., 2].mean() > hazy[..., 0].mean()


def test_false_colours_exchange_channels():
    before = np.asarray(picture().resize((32, 32), Image.Resampling.BICUBIC))
    assert (np.asarray(false_colours(picture())) == before[..., [2, 0, 1]]).all()


def test_a_scrawl_is_turned_and_noisy():
    bar = Image.fromarray(np.pad(np.full((40, 6, 3), 255, np.uint8), ((4, 4), (21, 21), (0, 0))))
    drawn = [np.asarray(scrawl(bar, np.random.default_rng(seed))).astype(float) for seed in range(20)]
    assert all(image.shape == (32, 32, 3) for image in drawn)
    assert len({image.tobytes() for image in drawn}) == 20
    assert np.mean(drawn, axis=0)[16, 16, 0] > np.mean(drawn, axis=0)[16, 2, 0] + 50


def test_grey_has_no_colour_and_few_details():
    drawn = np.asarray(grey(picture())).astype(float)
    assert drawn.shape == (48, 48, 3)
    assert (drawn == drawn[..., :1]).all()


def test_a_faint_digit_is_nearly_as_bright_as_its_ground():
    bar = Image.fromarray(np.pad(np.full((40, 6, 3), 255, np.uint8), ((4, 4), (21, 21), (0, 0))))
    drawn = np.mean([np.asarray(faint(bar, np.random.default_rng(seed)))[..., 0] for seed in range(20)], axis=0)
    assert 20 < drawn[16, 16] - drawn[16, 2] < 128


def test_further_sets_have_some_classes_of_a_source(tmp_path: Path, monkeypatch):
    faces_F10HW = np.random.default_rng(0).integers(0, 256, (3, 10, 48, 48), dtype=np.uint8)
    monkeypatch.setattr(development_sets, "render_all", lambda *, held_out: faces_F10HW)
    monkeypatch.setattr(development_sets, "_PER_DIGIT", 2)
    wanted = development_sets.Further(name="some", file="photos", source="zoo", change=grey, classes=2, per_class=3)
    monkeypatch.setattr(development_sets, "FURTHER", (wanted,))
    (tmp_path / "pretrain").mkdir()
    count = {"ant": 5, "bee": 4, "cat": 6, "few": 2}  # fewer than are wanted of each
    rows = [
        {"image": png_bytes(np.asarray(picture(i))), "label": label, "text": [label], "source": "zoo"}
        for label, images in count.items()
        for i in range(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pretrain" / "photos.parquet")
    write_further(tmp_path, tmp_path / "a")
    labels = pq.read_table(tmp_path / "a" / "some.parquet")["label"].to_pylist()
    assert sorted(labels.count(label) for label in set(labels)) == [3, 3]
    assert set(labels) < {"ant", "bee", "cat"}
    assert len(pq.read_table(tmp_path / "a" / "scrawls-faint.parquet")) == 20
    write_further(tmp_path, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_sets_are_the_same_every_time(tmp_path: Path, monkeypatch):
    faces_F10HW = np.random.default_rng(0).integers(0, 256, (3, 10, 48, 48), dtype=np.uint8)
    monkeypatch.setattr(development_sets, "render_all", lambda *, held_out: faces_F10HW)
    monkeypatch.setattr(development_sets, "_PER_DIGIT", 2)
    (tmp_path / "pretrain").mkdir()
    for file, source, label in (("photos", "pacs-photo", "dog"), ("aerial", "rsscn7", "forest")):
        rows = [
            {"image": png_bytes(np.asarray(picture(i))), "label": label, "text": [label], "source": kept}
            for i, kept in enumerate([source] * 10 + ["resisc12" if file == "aerial" else "another"])
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pretrain" / f"{file}.parquet")
    write_sets(tmp_path, tmp_path / "a")
    write_sets(tmp_path, tmp_path / "b")
    assert {f.name for f in (tmp_path / "a").iterdir()} == {
        f"{source}.{kind}" for source in ("pacs-photo", "rsscn7", "resisc12", "scrawls") for kind in ("parquet", "yaml")
    }
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    table = pq.read_table(tmp_path / "a" / "rsscn7.parquet")
    assert table["split"].to_pylist().count("train") == 6
    assert len(table) == 10
