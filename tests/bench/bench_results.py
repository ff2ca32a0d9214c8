"""Every method at its recipe on the target sets, with the miniature CLIP: ``make results``.

    RAYDAPT_DATA=... python -m tests.bench.bench_results WORK --output docs/results/targets.md

Runs are kept in WORK, so that the command, given again, goes on where it was; ``--minutes`` ends it after the run in
which they are over. ``--only`` makes the tables of what is there. ``--gpu`` is the plan for weights of full size, which
``--dry-run`` prints as commands; ``make results-gpu`` runs it.
"""

import argparse
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.settings.config import Config
from tests.bench.result_tables import Cell, page, read_cell

TARGETS = {
    "digits": ("data.source=digits",),
    "PACS cartoon": ("data.source=pacs_cartoon",),
    "EuroSAT, first 4,000": ("data.source=eurosat", "data.limit=4000"),
}
SHORT = "train.max_steps_per_round=200"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the tables: a method at its recipe, with what is set beside it."""

    method: str
    recipe: Path | None = None
    """A job file in place of the method's recipe."""
    settings: tuple[str, ...] = ()
    learns: bool = True
    """What learns nothing has one seed."""
    views: int = 1
    """Views of an image at test time."""


_ANCHORS = ("fair.layer_norms=false",)
ROWS: dict[str, Row] = {
    "`zero_shot`": Row(method="zero_shot", learns=False),
    "`ensemble`, mean of templates": Row(method="ensemble", learns=False),
    "`transduct`": Row(method="transduct", learns=False),
    "`fusion`": Row(method="fusion"),
    "`wca`, 8 crops": Row(method="wca", settings=("fair.crops=8",), learns=False, views=9),
    "`fair`, no crops": Row(method="fair", settings=(*_ANCHORS, "fair.crops=0")),
    "`fair`, crops to learn from alone": Row(method="fair", settings=(*_ANCHORS, "fair.score_at_test=false")),
    "`fair`, crops to answer from alone": Row(
        method="fair",
        settings=(
            *_ANCHORS,
            "fair.labels_from=whole",
            "fair.cached_view=whole",
            "fair.score_at_test=true",
        ),
        views=9,
    ),
    "`fpl`": Row(method="fpl", settings=(SHORT,)),
    "`cpl`": Row(method="cpl", settings=(SHORT,)),
    "`grip`": Row(method="grip", settings=(SHORT,)),
    "`fair`": Row(method="fair", settings=(SHORT,), views=9),
    "`fair`, LayerNorms": Row(method="fair", settings=(SHORT, "fair.layer_norms=true")),
    "`latteclip`": Row(method="latteclip", settings=(SHORT,)),
    "`coreg`": Row(method="coreg"),
    "`air`": Row(method="air", settings=(SHORT, "synthesis.samples_per_class=100")),
}
"""The rows in the order of their cost. `SHORT` is what two cores make necessary; it was not chosen by any accuracy."""

GPU_TARGETS = {
    name: (f"data.source={name}", "model.clip=ViT-B-32/openai")
    for name in ("eurosat", "dtd", "flowers102", "fgvc_aircraft", "resisc45", "oxford_pets")
}
GPU_ROWS: dict[str, Row] = {
    "`zero_shot`": ROWS["`zero_shot`"],
    "`ensemble`, mean of templates": ROWS["`ensemble`, mean of templates"],
    "`transduct`": ROWS["`transduct`"],
    "`fusion`": ROWS["`fusion`"],
    "`wca`": Row(method="wca", learns=False, views=61),
    "`fpl`": Row(method="fpl"),
    "`grip`": Row(method="grip"),
    "`cpl`": Row(method="cpl"),
    "`air`": Row(method="air", settings=("synthesis.pipeline=stable-diffusion-v1-5/stable-diffusion-v1-5",)),
    "`fair`, no crops": Row(method="fair", settings=("fair.crops=0",)),
    "`fair`": Row(method="fair"),
    "`fair`, crops": Row(method="fair", settings=("fair.score_at_test=true",), views=9),
    "`latteclip`": Row(
        method="latteclip",
        settings=("model.clip=ViT-B-32/laion2b_s34b_b79k", "caption.model=llava-hf/llava-v1.6-mistral-7b-hf"),
    ),
    "`coreg`": Row(method="coreg", recipe=Path("jobs/coreg-full.yaml"), settings=("train.epochs=100",)),
}
"""What only weights of full size and a GPU show: the published lengths at the published resolution."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: its cell, its settings and its folder."""

    target: str
    row: str
    seed: int
    method: str
    recipe: Path | None
    settings: tuple[str, ...]
    folder: Path


def jobs(work: Path, rows: Mapping[str, Row], targets: Mapping[str, Sequence[str]], seeds: int) -> Iterator[Job]:
    """All runs of a seed before the next seed, the cheap rows first."""
    for seed in range(seeds):
        for label, row in ((label, row) for label, row in rows.items() if row.learns or not seed):
            for target, given in targets.items():
                place = work / _name(target)
                name = f"{_name(label)}-{seed}"
                places = (f"runs={place}/runs", f"store={place}/store", "ray.progress=false")
                yield Job(
                    target=target,
                    row=label,
                    seed=seed,
                    method=row.method,
                    recipe=row.recipe,
                    settings=(*given, *row.settings, f"seed={seed}", f"name={name}", *places),
                    folder=place / "runs" / name,
                )


def _name(label: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in label).split()
    return "-".join(words).lower()


def command(job: Job) -> str:
    """The same run from a shell."""
    return shlex.join(["raydapt", "run", str(job.recipe or job.method), *job.settings])


def config_of(job: Job) -> Config:
    """Its settings, read and checked."""
    if job.recipe is not None:
        return load_config(str(job.recipe), list(job.settings))
    return load_config(None, [f"method={job.method}", *job.settings])


def make(planned: Sequence[Job], *, minutes: float) -> None:
    """Makes the runs that are not there yet, until the time is over."""
    end = time.monotonic() + 60 * minutes
    for job in tqdm([job for job in planned if not (job.folder / "metrics.json").exists()]):
        if time.monotonic() > end:
            return
        pipeline.run(config_of(job))


def cells(planned: Sequence[Job], rows: Mapping[str, Row]) -> list[Cell]:
    """What is there."""
    return [
        read_cell(job.folder, target=job.target, row=job.row, seed=job.seed, views=rows[job.row].views)
        for job in planned
        if (job.folder / "metrics.json").exists()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--rows", nargs="*", help="methods, all by default")
    parser.add_argument("--targets", nargs="*")
    parser.add_argument("--only", action="store_true", help="make no run")
    parser.add_argument("--gpu", action="store_true", help="the plan for weights of full size")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    given = parser.parse_args(arguments)
    rows, targets = (GPU_ROWS, GPU_TARGETS) if given.gpu else (ROWS, TARGETS)
    rows = {label: row for label, row in rows.items() if not given.rows or row.method in given.rows}
    targets = {name: settings for name, settings in targets.items() if not given.targets or name in given.targets}
    planned = list(jobs(given.work.absolute(), rows, targets, given.seeds))
    if given.dry_run:
        for job in planned:
            config_of(job)
            print(command(job))
        return
    if not given.only:
        make(planned, minutes=given.minutes)
    found = cells(planned, rows)
    state = f"State of {datetime.now(UTC):%Y-%m-%d}: {len(found)} of {len(planned)} runs."
    beside = {row: json.dumps(rows[row].settings) for row in rows}
    text = page(found, list(rows), list(targets), beside, state=state)
    if given.output is None:
        print(text)
    else:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
