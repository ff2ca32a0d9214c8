"""The comparison over seeds against naive figures, and what it refuses."""

import csv
import io
import json
import math

import pytest
import yaml

from raydapt.errors import UserError
from raydapt.report.compare import compare, format_csv, format_markdown, format_table, write_tables
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree

AFTER = {0: 61.2, 1: 58.9, 2: 64.4}
BEFORE = {0: 50.0, 1: 50.5, 2: 49.0}


def make_run(folder, *, method="cpl", seed=0, before=50.0, after=60.0, dataset="eurosat", paradigm="ul", **overrides):
    folder.mkdir(parents=True)
    tree = as_tree(Config()) | {"method": method, "seed": seed, "name": folder.name}
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


def test_mean_and_sd_over_seeds_equal_naive_figures(tmp_path):
    runs = [make_run(tmp_path / f"r{s}", seed=s, before=BEFORE[s], after=AFTER[s], train__workers=s) for s in AFTER]
    (row,) = compare(runs)
    mean = sum(AFTER.values()) / 3
    assert row.seeds == ("0", "1", "2")
    assert row.adapted.mean == pytest.approx(mean)
    assert row.adapted.sd == pytest.approx(math.sqrt(sum((a - mean) ** 2 for a in AFTER.values()) / 2))
    gains = [AFTER[s] - BEFORE[s] for s in AFTER]
    assert row.delta.mean == pytest.approx(sum(gains) / 3)
    assert row.delta.sd == pytest.approx(math.sqrt(sum((g - sum(gains) / 3) ** 2 for g in gains) / 2))
    assert row.seconds.mean == pytest.approx(12.0)  # The reused stage costs nothing.
    assert "61.5 ± 2.8" in format_table([row])


def test_rows_stand_in_order_and_one_seed_has_no_sd(tmp_path):
    runs = [make_run(tmp_path / m, method=m) for m in ("cpl", "grip", "zero_shot", "fpl")]
    runs.append(make_run(tmp_path / "digits", dataset="digits"))
    rows = compare(runs)
    assert [(r.dataset, r.method) for r in rows[:1]] == [("digits", "cpl")]
    assert {r.method for r in rows if r.dataset == "eurosat" and r.prompt == "text"} == {"cpl", "grip", "fpl"}
    assert all(row.adapted.sd is None for row in rows)
    assert "±" not in format_table(rows)
    assert "harmonic" not in format_table(rows)


def test_runs_with_other_settings_are_no_repetitions(tmp_path):
    runs = [
        make_run(tmp_path / "a", cpl__alpha=0.5),
        make_run(tmp_path / "b", cpl__alpha=0.9),
        make_run(tmp_path / "c", cpl__alpha=0.9, seed=1, grip__rounds=3),
    ]
    rows = compare(runs)
    assert [(row.settings, row.seeds) for row in rows] == [("cpl.alpha=0.5", ("0",)), ("cpl.alpha=0.9", ("0", "1"))]
    assert "cpl.alpha=0.9" in format_table(rows)


def test_the_last_of_two_equal_runs_counts(tmp_path):
    first, last = make_run(tmp_path / "a", after=10.0), make_run(tmp_path / "b", after=20.0)
    (row,) = compare([first, last, str(last) + "/"])
    assert (row.seeds, row.adapted.mean) == (("0",), 20.0)


def test_trzsl_shows_the_harmonic_mean_and_tells_divisions_apart(tmp_path):
    runs = [
        make_run(tmp_path / f"r{split}", paradigm="trzsl", after=50.0 + split / 100, data__split_seed=split)
        for split in (500, 0, 200)
    ]
    (row,) = compare(runs)
    assert row.seeds == ("0/0", "0/200", "0/500")
    assert row.harmonic_mean.mean == pytest.approx(50 + (5 + 0 + 2) / 3)
    assert row.adapted == row.harmonic_mean
    assert "unseen" in format_table([row])


def test_runs_without_labels_show_what_needs_none(tmp_path):
    run = make_run(tmp_path / "r")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics |= {"zero_shot": {"top1": None}, "adapted": None, "pseudo_labels": {"selected": 4, "accuracy": None}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (row,) = compare([run])
    assert row.adapted is None
    table = format_table([row])
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


def test_written_tables_hold_hostile_names_safely(tmp_path):
    hostile = 'a|b <b>,"c"\x1b[31m\nd'
    rows = compare([make_run(tmp_path / "r", dataset=hostile)])
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
