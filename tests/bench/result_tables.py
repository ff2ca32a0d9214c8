"""The tables of `bench_results`: what stands in a cell, and how sure it is.

Legend: S seeds, N test images.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

RESAMPLES = 2000
ZERO_SHOT, TEMPLATE_MEAN = "`zero_shot`", "`ensemble`, mean of templates"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run; accuracies in percent."""

    target: str
    row: str
    seed: int
    views: int
    adapted: float
    """Top-1 of the adapted model, whatever the guard says of it."""
    mean_per_class: float
    answered: float
    """Top-1 of what the run answers, with its guard."""
    answer: str
    """What the guard kept."""
    score_before: float | None
    score_after: float | None
    """Mutual information, which needs no label."""
    transductive: bool
    seconds: float
    right: Mapping[str, bool]
    """Whether the adapted model is right, by image."""


def read_cell(folder: Path, *, target: str, row: str, seed: int, views: int) -> Cell:
    """The figures of a finished run."""
    metrics = json.loads((folder / "metrics.json").read_text())
    table = pq.read_table(folder / "predictions.parquet", columns=["id", "class", "adapted"]).to_pydict()
    before, after = metrics["zero_shot_scores"], metrics["scores"]
    return Cell(
        target=target,
        row=row,
        seed=seed,
        views=views,
        adapted=metrics["unguarded"]["top1"],
        mean_per_class=metrics["unguarded"]["mean_per_class"],
        answered=metrics["adapted"]["top1"],
        answer=metrics["answer"],
        score_before=before and before["mutual_information"],
        score_after=after and after["mutual_information"],
        transductive=metrics["evaluation"]["transductive"],
        seconds=metrics["seconds"],
        right={
            id_: said == true for id_, true, said in zip(*(table[c] for c in ("id", "class", "adapted")), strict=True)
        },
    )


def paired_interval(ours: Sequence[Cell], reference: Sequence[Cell]) -> tuple[float, float, float]:
    """Difference in points of top-1 over the same images, and its 95 % bootstrap interval over the images.

    Seeds are averaged image by image, so the interval tells of other test images and not of other seeds.
    """
    ids = sorted(ours[0].right)
    if any(sorted(cell.right) != ids for cell in [*ours, *reference]):
        raise ValueError(f"The runs of {ours[0].row} and {reference[0].row} were measured on other images.")
    difference_N = 100 * (_share(ours, ids) - _share(reference, ids))
    generator = np.random.default_rng(0)
    drawn = [difference_N[generator.integers(0, len(ids), len(ids))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(difference_N.mean()), float(low), float(high)


def _share(cells: Sequence[Cell], ids: Sequence[str]) -> npt.NDArray[np.float64]:
    right_SN = np.array([[cell.right[id_] for id_ in ids] for cell in cells], np.float64)
    mean_N: npt.NDArray[np.float64] = right_SN.mean(axis=0)
    return mean_N


def tables(found: Sequence[Cell], rows: Sequence[str], targets: Sequence[str]) -> str:
    """Markdown: one table a target, a line for every row that has a run."""
    parts = []
    for target in targets:
        of_row: dict[str, list[Cell]] = defaultdict(list)
        for cell in found:
            if cell.target == target:
                of_row[cell.row].append(cell)
        lines = ["| " + " | ".join(_HEAD) + " |", "|---" * len(_HEAD) + "|"]
        lines += [_line(of_row[row], of_row) for row in rows if of_row[row]]
        lines += [f"| {row} | – |" + " |" * (len(_HEAD) - 2) for row in rows if not of_row[row]]
        images = len(next((cells[0].right for cells in of_row.values() if cells), {}))
        parts.append(f"## {target}\n\n{images:,} test images.\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


_HEAD = ("method", "top-1", "mean per class", "against zero-shot", "against mean of templates", "with the guard",
         "score before → after", "images, views", "seeds", "seconds")  # fmt: skip


def _line(cells: Sequence[Cell], of_row: Mapping[str, Sequence[Cell]]) -> str:
    kept = sum(cell.answer == "adapted" for cell in cells)
    before, after = _mean(cells, lambda c: c.score_before), _mean(cells, lambda c: c.score_after)
    shown = [
        cells[0].row,
        _spread([cell.adapted for cell in cells]),
        _spread([cell.mean_per_class for cell in cells]),
        *(_against(cells, of_row.get(reference, ())) for reference in (ZERO_SHOT, TEMPLATE_MEAN)),
        f"{np.mean([cell.answered for cell in cells]):.1f} (kept {kept} of {len(cells)})",
        f"{before} → {after}",
        f"{'transductive' if cells[0].transductive else 'inductive'}, {cells[0].views}",
        str(len(cells)),
        f"{np.mean([cell.seconds for cell in cells]):.0f}",
    ]
    return "| " + " | ".join(shown) + " |"


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.1f}"


def _mean(cells: Sequence[Cell], of: Callable[[Cell], float | None]) -> str:
    values = [value for cell in cells if (value := of(cell)) is not None]
    return f"{np.mean(values):.2f}" if values else "–"


def _against(cells: Sequence[Cell], reference: Sequence[Cell]) -> str:
    if not reference or cells[0].row == reference[0].row:
        return "–"
    mean, low, high = paired_interval(cells, reference)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def page(
    found: Sequence[Cell], rows: Sequence[str], targets: Sequence[str], settings: Mapping[str, str], *, state: str = ""
) -> str:
    """The whole page: how settings were chosen, the columns, the tables, what is set beside the recipes."""
    beside = [f"- {row}: `{' '.join(json.loads(given))}`" for row, given in settings.items() if json.loads(given)]
    head = Path(__file__).with_name("results_head.md").read_text()
    return "\n".join(
        [
            head,
            *([state, ""] if state else []),
            tables(found, rows, targets),
            "",
            "## Beside the recipes",
            "",
            *beside,
            "",
        ]
    )
