"""The benchmark on the target sets: its plan, its figures against loops, and the plan for weights of full size."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.bench.bench_results import GPU_ROWS, GPU_TARGETS, ROWS, TARGETS, config_of, jobs, main
from tests.bench.result_tables import TEMPLATE_MEAN, ZERO_SHOT, Cell, page, paired_interval, read_cell


def cell(row: str, seed: int, right: list[bool], target: str = "digits", answer: str = "adapted") -> Cell:
    return Cell(
        target=target,
        row=row,
        seed=seed,
        views=1,
        adapted=100 * sum(right) / len(right),
        mean_per_class=50.0 + seed,
        answered=70.0,
        answer=answer,
        score_before=0.5,
        score_after=0.75,
        transductive=False,
        seconds=12.0,
        right={str(i): bool(good) for i, good in enumerate(right)},
    )


def test_every_run_of_the_plan_has_settings_of_its_own_and_a_folder_of_its_own(tmp_path: Path) -> None:
    for rows, targets in ((ROWS, TARGETS), (GPU_ROWS, GPU_TARGETS)):
        planned = list(jobs(tmp_path, rows, targets, 3))
        assert len({job.folder for job in planned}) == len(planned)
        assert len(planned) == len(targets) * sum(3 if row.learns else 1 for row in rows.values())
        for job in planned:
            config = config_of(job)
            assert config.method == rows[job.row].method  # every setting is known, and of this method
            assert job.folder == Path(config.runs) / config.name


def test_the_plan_for_full_size_weights_is_shown_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path), "--gpu", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(jobs(tmp_path, GPU_ROWS, GPU_TARGETS, 3)))
    assert all(shlex.split(line)[:2] == ["raydapt", "run"] for line in lines)
    assert not list(tmp_path.iterdir())
    makefile = Path("Makefile").read_text()
    assert re.search(r"bench_results \.results-gpu --gpu", makefile)
    assert re.search(r"bench_results \.results --output docs/results/targets\.md", makefile)


def test_the_interval_is_that_of_the_images_of_both_runs() -> None:
    generator = np.random.default_rng(1)
    ours = [cell("`cpl`", seed, generator.random(400) < 0.8) for seed in range(3)]
    before = [cell(ZERO_SHOT, 0, generator.random(400) < 0.6)]
    mean, low, high = paired_interval(ours, before)
    each = []
    for i in range(400):
        each.append(100 * (sum(run.right[str(i)] for run in ours) / 3 - before[0].right[str(i)]))
    assert mean == pytest.approx(np.mean(each))
    half = 1.96 * np.std(each, ddof=1) / 20  # the central limit, which 400 images are near to
    assert (low, high) == (pytest.approx(mean - half, abs=0.4), pytest.approx(mean + half, abs=0.4))
    assert paired_interval(before, before) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="other images"):
        paired_interval(ours, [cell(ZERO_SHOT, 0, [True] * 10)])


def test_the_page_has_a_line_for_every_row_and_tells_what_was_not_run() -> None:
    found = [
        cell(ZERO_SHOT, 0, [True, False, True, False], answer="zero-shot"),
        cell("`cpl`", 0, [True, True, True, False]),
        cell("`cpl`", 1, [True, True, True, True], answer="zero-shot"),
    ]
    text = page(found, [ZERO_SHOT, TEMPLATE_MEAN, "`cpl`"], ["digits"], {"`cpl`": '["train.epochs=3"]'})
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| `")}
    assert lines["`cpl`"].startswith("| `cpl` | 87.5 ± 17.7 | 50.5 ± 0.7 | +37.5 [")
    assert "| 70.0 (kept 1 of 2) | 0.50 → 0.75 | inductive, 1 | 2 | 12 |" in lines["`cpl`"]
    assert lines[ZERO_SHOT].startswith("| `zero_shot` | 50.0 | 50.0 | – | – |")
    assert lines[TEMPLATE_MEAN].startswith(f"| {TEMPLATE_MEAN} | – |")
    assert "- `cpl`: `train.epochs=3`" in text


@pytest.mark.slow
def test_a_run_is_read_as_its_files_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--rows", "zero_shot", "--targets", "digits", "--output", str(tmp_path / "page.md")])
    (job,) = [job for job in jobs(tmp_path, ROWS, TARGETS, 3) if (job.folder / "metrics.json").exists()]
    found = read_cell(job.folder, target="digits", row=ZERO_SHOT, seed=0, views=1)
    assert found.adapted == pytest.approx(100 * sum(found.right.values()) / len(found.right))
    assert len(found.right) == 537
    assert f"| {ZERO_SHOT} | {found.adapted:.1f} |" in (tmp_path / "page.md").read_text()
