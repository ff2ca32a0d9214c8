"""The comparison over seeds against naive figures, and what it refuses."""

import csv
import io
import json
import math

import pandas as pd
import pytest
import yaml
from rich.cells import cell_len

from raydapt.errors import UserError
from raydapt.methods.table import GROUPS
from raydapt.report.compare import format_csv, format_markdown, format_table, write_tables
from raydapt.run.reporting import compare_runs
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree

AFTER = {0: 61.2, 1: 58.9, 2: 64.4}
BEFORE = {0: 50.0, 1: 50.5, 2: 49.0}


def every_group():
    """Run folders of earlier releases hold the settings of every method."""
    return {name: as_tree(kind()) for name, kind in GROUPS.items()}


def make_run(folder, *, method="cpl", seed=0, before=50.0, after=60.0, dataset="eurosat", paradigm="ul", **overrides):
    folder.mkdir(parents=True)
    tree = as_tree(Config()) | every_group() | {"method": method, "seed": seed, "name": folder.name}
    for key, value in overrides.items():
        part, _, name = key.partition("__")
        tree[part][name] = value
    key = "harmonic_mean" if paradigm == "trzsl" else "top1"
    metrics = {
        "name": folder.name,
        "method": method,
        "paradigm": paradigm,
        "dataset": dataset,
        "seed": seed,
        "zero_shot": {"top1": before, "mean_per_class": before, key: before},
        "adapted": {"top1": after, "mean_per_class": after, "seen": 71.5, "unseen": 42.5, key: after},
        "pseudo_labels": {"selected": 10, "accuracy": after},
        "label_free_score": 0.25,
        "stages": {"features": {"seconds": 5.0, "reused": False}, "pixels": {"seconds": 99.0, "reused": True}},
        "train": {"seconds": 7.0},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


def compare(folders):
    """The rows of the comparison, as tuples with a name for each column."""
    frame = compare_runs(folders)
    return frame, list(frame.itertuples(index=False))


def test_mean_and_sd_over_seeds_equal_naive_figures(tmp_path):
    runs = [make_run(tmp_path / f"r{s}", seed=s, before=BEFORE[s], after=AFTER[s], train__workers=s) for s in AFTER]
    frame, (row,) = compare(runs)
    mean = sum(AFTER.values()) / 3
    assert row.seeds == "0, 1, 2"
    assert row.adapted_mean == pytest.approx(mean)
    assert row.adapted_sd == pytest.approx(math.sqrt(sum((a - mean) ** 2 for a in AFTER.values()) / 2))
    gains = [AFTER[s] - BEFORE[s] for s in AFTER]
    assert row.delta_mean == pytest.approx(sum(gains) / 3)
    assert row.delta_sd == pytest.approx(math.sqrt(sum((g - sum(gains) / 3) ** 2 for g in gains) / 2))
    assert row.seconds_mean == pytest.approx(12.0)  # The reused stage costs nothing.
    assert "61.5 ± 2.8" in format_table(frame)


def test_rows_stand_in_order_and_one_seed_has_no_sd(tmp_path):
    runs = [make_run(tmp_path / m, method=m) for m in ("cpl", "grip", "zero_shot", "fpl")]
    runs.append(make_run(tmp_path / "digits", dataset="digits"))
    frame, rows = compare(runs)
    assert [(r.dataset, r.method, r.learned) for r in rows] == [
        ("digits", "cpl", "text prompt"),
        ("eurosat", "zero_shot", "–"),
        ("eurosat", "fpl", "text prompt"),
        ("eurosat", "grip", "text prompt"),
        ("eurosat", "cpl", "text prompt"),
    ]
    assert frame["adapted_sd"].isna().all()
    assert "±" not in format_table(frame)
    assert "harmonic" not in format_table(frame)


def test_runs_with_other_settings_are_no_repetitions(tmp_path):
    runs = [
        make_run(tmp_path / "a", cpl__alpha=0.5),
        make_run(tmp_path / "b", cpl__alpha=0.9),
        make_run(tmp_path / "c", cpl__alpha=0.9, seed=1, grip__rounds=3),
    ]
    frame, rows = compare(runs)
    assert [(row.settings, row.seeds) for row in rows] == [("cpl.alpha=0.5", "0"), ("cpl.alpha=0.9", "0, 1")]
    assert "cpl.alpha=0.9" in format_table(frame)


@pytest.mark.parametrize(
    ("method", "setting"),
    [("air", "cpl.alpha"), ("air", "air.fusion_weight"), ("wca", "fair.crops"), ("fair", "fair.crops")],
)
def test_runs_that_differ_in_what_their_method_goes_by_are_two_rows(tmp_path, method, setting):
    key = setting.replace(".", "__")
    first, second = (0.25, 0.5) if setting == "cpl.alpha" else (1, 2)
    runs = [make_run(tmp_path / str(v), method=method, after=10.0 * v, **{key: v}) for v in (first, second)]
    _, rows = compare(runs)
    told = [(row.settings, row.adapted_mean) for row in rows]
    assert told == [(f"{setting}={first}", 10.0 * first), (f"{setting}={second}", 10.0 * second)]


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("air", "grip.rounds"),
        ("cpl", "fair.crops"),
        ("cpl", "lora.rank"),
        ("wca", "train.epochs"),
        ("coreg", "model.prompt"),
    ],
)
def test_runs_that_differ_in_what_their_method_does_not_use_are_one_row(tmp_path, method, setting):
    key = setting.replace(".", "__")
    runs = [make_run(tmp_path / str(v), method=method, seed=v, **{key: v}) for v in (1, 2)]
    _, rows = compare(runs)
    assert [row.seeds for row in rows] == ["1, 2"]


@pytest.mark.parametrize(
    ("method", "learned"),
    [
        ("zero_shot", "–"),
        ("wca", "–"),
        ("cpl", "visual prompt"),
        ("air", "visual prompt"),
        ("fair", "class anchors and LayerNorms of the image tower"),
        ("coreg", "two preact_resnet18 students"),
        ("latteclip", "both towers of CLIP"),
    ],
)
def test_what_is_learned_is_the_methods_own(tmp_path, method, learned):
    frame, (row,) = compare([make_run(tmp_path / "r", method=method, model__prompt="visual")])
    assert row.learned == learned
    assert ("learned" in format_table(frame)) == (learned != "–")


def test_columns_stay_in_line_beside_wide_names_and_markup_is_text(tmp_path):
    names = ["日本の写真", "[red]e\u0301tude[/]", "eurosat"]
    runs = [make_run(tmp_path / str(i), dataset=name) for i, name in enumerate(names)]
    text = format_table(compare_runs(runs))
    assert "[red]" in text
    assert len({cell_len(line.split(" cpl ")[0]) for line in text.splitlines() if " cpl " in line}) == 1


def test_no_runs_are_an_empty_frame():
    frame, rows = compare([])
    assert rows == []
    assert {"dataset", "learned", "adapted_mean"} <= set(frame.columns)


def test_the_last_of_two_equal_runs_counts(tmp_path):
    first, last = make_run(tmp_path / "a", after=10.0), make_run(tmp_path / "b", after=20.0)
    _, (row,) = compare([first, last, str(last) + "/"])
    assert (row.seeds, row.adapted_mean) == ("0", 20.0)


def test_trzsl_shows_the_harmonic_mean_and_tells_divisions_apart(tmp_path):
    runs = [
        make_run(tmp_path / f"r{split}", paradigm="trzsl", after=50.0 + split / 100, data__split_seed=split)
        for split in (500, 0, 200)
    ]
    frame, (row,) = compare(runs)
    assert row.seeds == "0/0, 0/200, 0/500"
    assert row.harmonic_mean_mean == pytest.approx(50 + (5 + 0 + 2) / 3)
    assert (row.adapted_mean, row.adapted_sd) == (row.harmonic_mean_mean, row.harmonic_mean_sd)
    assert "unseen" in format_table(frame)


def test_runs_without_labels_show_what_needs_none(tmp_path):
    run = make_run(tmp_path / "r")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics |= {"zero_shot": {"top1": None}, "adapted": None, "pseudo_labels": {"selected": 4, "accuracy": None}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    frame, (row,) = compare([run])
    assert pd.isna(row.adapted_mean)
    table = format_table(frame)
    assert "label-free score" in table
    assert "0.250" in table
    assert "adapted" not in table


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no metrics") as caught:
            compare([folder])
        assert str(folder) in str(caught.value)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        compare([tmp_path])


def test_what_a_run_reaches_without_its_guard_has_a_column_where_it_differs(tmp_path):
    runs = [make_run(tmp_path / f"s{seed}", seed=seed, after=50.0) for seed in range(2)]
    assert "without guard" not in format_table(compare_runs(runs))
    for place, alone in enumerate((70.0, 72.0)):
        file = runs[place] / "metrics.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"unguarded": {"top1": alone}}))
    frame, (row,) = compare(runs)
    assert (row.unguarded_mean, row.adapted_mean) == (71.0, 50.0)
    assert "without guard %" in format_table(frame)
    assert "71.0 ± 1.4" in format_table(frame)


def test_written_tables_hold_hostile_names_safely(tmp_path):
    hostile = 'a|b <b>,"c"\x1b[31m\nd'
    rows = compare_runs([make_run(tmp_path / "r", dataset=hostile)])
    paths = write_tables(rows, tmp_path / "comparison.md")
    assert paths == [f"{tmp_path}/comparison.md", f"{tmp_path}/comparison.csv"]
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert markdown == format_markdown(rows)
    assert len(markdown.splitlines()) == 3
    assert "<b>" not in markdown
    assert "\x1b" not in markdown + format_table(rows) + format_csv(rows)
    (line,) = csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text(encoding="utf-8")))
    assert line["dataset"].startswith('a|b <b>,"c"')
    assert float(line["adapted_mean"]) == 60.0
    assert line["adapted_sd"] == ""
