"""The state of a review: who was handed which image, what was answered. Every answer is on the disk before it counts.

`review.json` beside the run holds the answers and where the design came from, ``review-design.parquet`` the design:
the stratum of every image and its place in the order of asking. Both are written whole.

Legend: N images, A images that may be asked about, in the order of asking.
"""

import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.errors import UserError
from raydapt.review.design import Design, make_design
from raydapt.review.estimates import NONE, Answers
from raydapt.review.population import Population
from raydapt.store.run_record import Run

REVIEW, DESIGN = "review.json", "review-design.parquet"
FOR_ESTIMATES, FOR_CHOICE = "estimates", "choice"
"""Why an image was asked about. What was asked to choose among runs never counts as drawn by the design."""
_LEASE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One click.

    Attributes:
        id: Of the image.
        kind: ``class``, ``none`` or ``cannot tell``.
        name: The class, where it is one.
        reviewer: Who; a random name of a browser tab.
        purpose: `FOR_ESTIMATES` or `FOR_CHOICE`.
        seconds: Since 1970.
    """

    id: str
    kind: str
    name: str | None
    reviewer: str
    purpose: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As ``review.json`` has it."""
        return dict(vars(self))


@dataclass(kw_only=True)
class Session:
    """A review that goes on; several threads may use it at once.

    Attributes:
        record: The first run.
        population: What is reviewed.
        design: Which images are asked about.
        made_by: Names of the runs whose predictions the design knows.
        answers: In the order in which they came; an image that was answered twice has its first answer count.
        clock: Seconds since 1970.
    """

    record: Run
    population: Population
    design: Design
    made_by: Sequence[str]
    answers: list[Answer] = field(default_factory=list)
    clock: Callable[[], float] = time.time
    _leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.index_of = {id_: i for i, id_ in enumerate(self.population.id_N)}
        self.class_of = {name: c for c, name in enumerate(self.population.classes)}

    def next_id(self, reviewer: str, purpose: str = FOR_ESTIMATES, wanted: Sequence[int] | None = None) -> str | None:
        """The image that a reviewer is to look at: the same one until it is answered; None when all are.

        Args:
            reviewer: Who asks.
            purpose: Why.
            wanted: Images in the order of asking; by default the design's.
        """
        with self._lock:
            now = self.clock()
            done = {answer.id for answer in self.answers if answer.purpose == purpose}
            self._leases = {
                id_: (who, until) for id_, (who, until) in self._leases.items() if until > now and id_ not in done
            }
            held = {id_ for id_, (who, _) in self._leases.items() if who != reviewer}
            order = self.design.order_A.tolist() if wanted is None else wanted
            for index in order:
                id_ = self.population.id_N[index]
                if id_ not in done and id_ not in held:
                    self._leases = {i: lease for i, lease in self._leases.items() if lease[0] != reviewer}
                    self._leases[id_] = (reviewer, now + _LEASE_S)
                    return id_
            return None

    def give(self, id_: str, kind: str, name: str | None, reviewer: str, purpose: str = FOR_ESTIMATES) -> None:
        """Stores an answer.

        Raises:
            UserError: For an image or a class that is not of this review, or a full disk; nothing is stored then.
        """
        if id_ not in self.index_of:
            raise UserError(f"Image {id_!r} is not of this review: reload the page.")
        if kind not in ("class", "none", "cannot tell") or (kind == "class") != (name in self.class_of):
            raise UserError(f"Answer {name or kind!r} is no class of this review: reload the page.")
        with self._lock:
            answer = Answer(id=id_, kind=kind, name=name if kind == "class" else None, reviewer=reviewer,
                            purpose=purpose, seconds=self.clock())  # fmt: skip
            self._save([*self.answers, answer])
            self._leases.pop(id_, None)

    def undo(self, reviewer: str) -> str | None:
        """Takes back a reviewer's last answer and hands them its image again; None when there is none."""
        with self._lock:
            for at in range(len(self.answers) - 1, -1, -1):
                if self.answers[at].reviewer == reviewer:
                    id_ = self.answers[at].id
                    self._save(self.answers[:at] + self.answers[at + 1 :])
                    self._leases = {i: lease for i, lease in self._leases.items() if lease[0] != reviewer}
                    self._leases[id_] = (reviewer, self.clock() + _LEASE_S)
                    return id_
            return None

    def told(self, purpose: str | None = FOR_ESTIMATES) -> Answers:
        """The images whose class is known; those for any purpose where it is None."""
        with self._lock:
            first: dict[int, int] = {}
            for answer in self.answers:
                if purpose in (None, answer.purpose) and answer.kind != "cannot tell":
                    class_ = NONE if answer.kind == "none" else self.class_of[str(answer.name)]
                    first.setdefault(self.index_of[answer.id], class_)
        index_M = np.array(list(first), dtype=np.int64)
        return Answers(index_M=index_M, class_M=np.array(list(first.values()), dtype=np.int64))

    def count(self, purpose: str = FOR_ESTIMATES) -> int:
        """Images that were answered, those that nobody could tell among them."""
        return len({answer.id for answer in self.answers if answer.purpose == purpose})

    def _save(self, answers: list[Answer]) -> None:
        review = {
            "version": 1,
            "classes": list(self.population.classes),
            "design": {"seed": self.design.seed, "runs": list(self.made_by), "file": DESIGN},
            "answers": [answer.as_dict() for answer in answers],
        }
        self.record.write_json(REVIEW, review)
        self.answers = answers


def open_session(record: Run, population: Population, *, seed: int, clock: Callable[[], float] = time.time) -> Session:
    """Begins a review, or goes on with the one that the folder holds.

    Args:
        record: The first run.
        population: What is reviewed. A design that is there stays as it was drawn; it must be of the same images.
        seed: Of a new design.
        clock: Seconds since 1970.

    Raises:
        UserError: If the folder holds a review of other images or classes.
    """
    if not record.exists(REVIEW):
        design = make_design(population, seed=seed)
        _write_design(record, population, design)
        session = Session(record=record, population=population, design=design, made_by=population.names, clock=clock)
        session._save([])
        return session
    review = record.read_json(REVIEW)
    table = pq.read_table(io.BytesIO(record.read_bytes(DESIGN)))
    if review["classes"] != list(population.classes) or table["id"].to_pylist() != list(population.id_N):
        raise UserError(
            f"File {record.file(REVIEW)!r} is a review of other images or classes than the runs': move it away to "
            "begin a new one."
        )
    stratum_N, place_N = (table[name].to_numpy().astype(np.int64) for name in ("stratum", "place"))
    asked_N = np.flatnonzero(place_N >= 0)
    order_A = asked_N[np.argsort(place_N[asked_N])]
    return Session(
        record=record,
        population=population,
        design=Design(seed=int(review["design"]["seed"]), stratum_N=stratum_N, order_A=order_A),
        made_by=review["design"]["runs"],
        answers=[Answer(**answer) for answer in review["answers"]],
        clock=clock,
    )


def _write_design(record: Run, population: Population, design: Design) -> None:
    place_N = np.full(len(population.id_N), -1, dtype=np.int64)
    place_N[design.order_A] = np.arange(len(design.order_A))
    table = pa.table({"id": list(population.id_N), "stratum": design.stratum_N, "place": place_N})
    record.write_table(DESIGN, table)
