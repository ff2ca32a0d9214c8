"""`raydapt plan`: hours, storage and cost of a job on more images, from what finished runs took.

A stage takes its start-up once, which ends with the first part of every actor, then a constant time per row and actor;
training takes a constant time per image that it looks at, and looks at images in proportion to their number unless
train.max_steps_per_round ends a round before.
The assumptions stand below every table, and `check` compares the estimate of one measured run with another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydapt.errors import UserError

SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
ASSUMPTIONS = (
    "a stage starts once, whatever the number of images, until each actor has made a part; then every actor goes at "
    "the measured rate (its model's own rate where the measured run had too few parts to tell)",
    "synthetic images and LoRA steps are as many as measured; partial labels take a time per image in one process",
    "actors do not slow each other: they have their own device, and reading keeps up",
    "training looks at images in proportion to their number; with max_steps_per_round it takes the steps it took",
    "storage per row is as measured; the source itself is not counted",
    "a machine is paid while its stage or training runs, and not between them",
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One stage, or the training, at one number of images.

    Attributes:
        name: The stage.
        images: How many images.
        actors: Actors or workers.
        hours: Wall time.
        actor_hours: Wall time times actors.
        gigabytes: What it leaves in the store.
        cost: ``actor_hours`` times the price of an actor's hour.
    """

    name: str
    images: int
    actors: int
    hours: float
    actor_hours: float
    gigabytes: float
    cost: float


def estimate(metrics: Mapping[str, Any], images: int, *, actors: int | None = None, price: float = 0.0) -> list[Line]:
    """What a run like the measured one would take.

    Args:
        metrics: ``metrics.json`` of a finished run.
        images: Number of images.
        actors: Actors of every stage and workers of the training; None: as measured.
        price: Of one actor's (or worker's) hour.

    Raises:
        UserError: If the run has nothing measured.
    """
    lines = []
    for name, stage in metrics.get("stages", {}).items():
        # Synthetic images are as many as were asked for, however many real ones there are.
        rows = int(stage["rows"]) if name.startswith("synthetic") else images
        count = max(1, (actors or int(stage["actors"])) if stage.get("actors") else 1)
        seconds = _stage_seconds(stage, rows, count)
        if seconds is not None:
            gigabytes = rows * stage.get("bytes", 0) / max(1, stage["rows"]) / 1e9
            lines.append(_line(name, images, count, seconds / 3600, gigabytes, price))
    train = metrics.get("train", {})
    if train.get("images_per_s"):
        count = actors or max(1, int(train["workers"]))
        rows = max(1, metrics["stages"]["features"]["rows"])
        visits = train["images"] * (1.0 if train.get("capped") else images / rows)
        per_worker = train["images_per_s"] / max(1, int(train["workers"]))
        lines.append(_line("train", images, count, visits / (per_worker * count) / 3600, 0.0, price))
    if not lines:
        raise UserError("The measured run computed nothing itself: give --measured=RUN, one that made its features.")
    return lines


def _stage_seconds(stage: Mapping[str, Any], rows: int, actors: int) -> float | None:
    """Wall time of a stage over so many rows; None when nothing was measured."""
    if "rows_computed" not in stage:  # made in one process: LoRA takes its steps, partial labels a time per image
        share = 1.0 if "steps" in stage else rows / max(1, stage["rows"])
        return float(stage["seconds"] * share) if stage.get("seconds") else None
    measured = stage_seconds_per_row(stage)
    if measured is None:
        return None
    # Start-up ends with the first part of every actor: what remains are the rows beyond those.
    rest = max(0.0, rows - actors * stage.get("startup_rows", 0))
    return float(stage["startup_seconds"] + rest * measured / actors)


def stage_seconds_per_row(stage: Mapping[str, Any]) -> float | None:
    """Actor-seconds that one row took once the stage had started; None when the stage computed nothing to tell from.

    The parts that the actors made while the stage started belong to the start: counted among the rest, they would make
    a small run look faster than it was. Parts that wait for the driver arrive together, which does the same, but no
    row takes less than its model took for it.
    """
    actors = max(1, int(stage.get("actors", 1)))
    rest = stage.get("rows_computed", 0) - actors * stage.get("startup_rows", 0)
    seconds = stage.get("seconds", 0.0) - stage.get("startup_seconds", 0.0)
    in_model = stage.get("model_seconds", 0.0) / max(1, stage.get("rows_computed", 0))
    if rest >= max(2, stage.get("startup_rows", 0)) and seconds > 0:
        return float(max(seconds * actors / rest, in_model))
    return float(in_model) or None


def check(measured: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """The seconds that `measured` predicts for the run `other` with its actors, beside those that it took, by stage."""
    rows = other["stages"]["features"]["rows"]
    took = {name: stage["seconds"] for name, stage in other["stages"].items()} | {"train": other["train"]["seconds"]}
    actors = {name: stage.get("actors") for name, stage in other["stages"].items()}
    actors["train"] = other["train"].get("workers")
    return [
        (line.name, line.hours * 3600, float(took[name]))
        for name, count in actors.items()
        for line in estimate(measured, rows, actors=count or None)
        if line.name == name and took[name]
    ]


def format_estimate(lines: Sequence[Line], currency: str = "") -> str:
    """A table of all lines, the totals per number of images, and the assumptions."""
    head = f"{'images':>12}  {'stage':<12}{'actors':>7}{'hours':>11}{'actor-hours':>13}{'GB stored':>12}{'cost':>12}"
    table = [head, "-" * len(head)]
    for images in dict.fromkeys(line.images for line in lines):
        of_size = [line for line in lines if line.images == images]
        total = Line(
            name="all",
            images=images,
            actors=max(line.actors for line in of_size),
            hours=sum(line.hours for line in of_size),
            actor_hours=sum(line.actor_hours for line in of_size),
            gigabytes=sum(line.gigabytes for line in of_size),
            cost=sum(line.cost for line in of_size),
        )
        table += [_row(line, currency) for line in [*of_size, total]]
    return "\n".join([*table, "", "Assumptions:", *(f"- {text}" for text in ASSUMPTIONS)])


def format_check(rows: Sequence[tuple[str, float, float]]) -> str:
    """Predicted and measured seconds with their ratio."""
    return "\n".join(
        f"{name:<12} predicted {predicted:8.1f} s, measured {took:8.1f} s, ratio {predicted / took:.2f}"
        for name, predicted, took in rows
    )


def _line(name: str, images: int, actors: int, hours: float, gigabytes: float, price: float) -> Line:
    spent = hours * actors
    return Line(
        name=name,
        images=images,
        actors=actors,
        hours=hours,
        actor_hours=spent,
        gigabytes=gigabytes,
        cost=spent * price,
    )


def _row(line: Line, currency: str) -> str:
    return (
        f"{line.images:>12,}  {line.name:<12}{line.actors:>7}{line.hours:>11.2f}{line.actor_hours:>13.2f}"
        f"{line.gigabytes:>12.2f}{line.cost:>12.2f}{currency}"
    )
