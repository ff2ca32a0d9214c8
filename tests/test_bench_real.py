"""The benchmark on real features: what it writes for a variant, and what its tables say."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.bench.bench_real import ENCODERS, FOREIGN, PROMPT, Cell, prompt_accuracy, tables, write_variant
from tests.data.features import unit, write


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten classes of eight images each; the single wording is right for all but one of them."""
    folder = tmp_path / "clip_features"
    folder.mkdir()
    names, generator = [f"place {c}" for c in range(10)], np.random.default_rng(0)
    class_CD = unit(generator.standard_normal((10, 32))).astype(np.float32)
    stem = ENCODERS["RN50"] + "-whurs19"
    labels = [names[i % 10] for i in range(80)]
    write(folder / f"{stem}.parquet", class_CD[np.arange(80) % 10], id=[str(i) for i in range(80)], label=labels)
    swapped_CD = class_CD.copy()
    swapped_CD[9] = -class_CD[9]
    wordings = ["mean of templates"] * 10 + [PROMPT] * 10
    write(folder / f"{stem}.classes.parquet", np.concatenate([class_CD, swapped_CD]), name=names * 2, template=wordings)
    monkeypatch.setenv("RAYDAPT_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("variant", "rows", "classes"), [("as it is", 80, 10), ("5 present", 40, 10), ("5 a class", 50, 10)]
)
def test_a_variant_has_its_rows_and_names(data: Path, variant: str, rows: int, classes: int) -> None:
    features, embeddings = write_variant("RN50", variant, 0, data / "work")
    table, given = pq.read_table(features), pq.read_table(embeddings)
    assert (table.num_rows, given.num_rows) == (rows, 2 * classes)
    assert set(table["label"].to_pylist()) <= set(given["name"].to_pylist())


def test_images_of_no_named_class_are_labelled_as_such(data: Path) -> None:
    features, embeddings = write_variant("RN50", "30 % open set", 0, data / "work")
    labels, named = pq.read_table(features)["label"].to_pylist(), set(pq.read_table(embeddings)["name"].to_pylist())
    assert 0.28 < labels.count(FOREIGN) / len(labels) < 0.32
    assert {label for label in labels if label != FOREIGN} == named
    assert len(named) == 7


def test_the_single_wording_is_measured_by_itself(data: Path) -> None:
    features, embeddings = write_variant("RN50", "as it is", 0, data / "work")
    assert prompt_accuracy(features, embeddings) == pytest.approx(90.0)


def test_tables_tell_mean_and_worst() -> None:
    def cell(encoder: str, variant: str, adapted: float) -> Cell:
        return Cell(encoder=encoder, variant=variant, draw=0, method="cpl", prompt=70, zero_shot=80, adapted=adapted,
                    kept=max(80, adapted), mean_before=75, mean_after=76, mean_kept=75.5, seconds=3)  # fmt: skip

    text = tables([cell("RN50", "as it is", 90), cell("ViT-B/32", "as it is", 78), cell("RN50", "10:1", 85)])
    assert "| `cpl` | 90.0 (+10.0) | 78.0 (-2.0) | – | – | +4.0 | -2.0 | +1.0 | +14.0 | 3 |" in text
    alone, answered = ([line.split(" | ") for line in text.splitlines() if line.startswith(f"| {variant} | ")]
                       for variant in ("10:1", "as it is"))  # fmt: skip
    assert [line[1] for line in alone] == ["80.0", "80.0"]
    assert [[cell for cell in line[2:] if "–" not in cell] for line in alone] == [
        ["+5.0 / +5.0 / +1.0 (1)"],
        ["+5.0 / +5.0 / +0.5 (1)"],
    ]
    assert [next(cell for cell in line[2:] if "–" not in cell) for line in answered] == [
        "+4.0 / -2.0 / +1.0 (2)",
        "+5.0 / +0.0 / +0.5 (2)",
    ]
