"""Answers on the disk: at once, whole, of two people, taken back, gone on with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raydapt.errors import UserError
from raydapt.review.session import DESIGN, FOR_CHOICE, REVIEW, Session, open_session
from raydapt.store.run_record import Run
from tests.review.populations import population

PEOPLE, TRUTH_N = population(0, n=40)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def record(tmp_path: Path) -> Run:
    return Run(str(tmp_path), "run")


def opened(record: Run, clock: Clock | None = None) -> Session:
    return open_session(record, PEOPLE, seed=0, clock=clock or Clock())


def test_the_order_is_that_of_the_design_and_goes_on_after_a_restart(record: Run) -> None:
    session = opened(record)
    expected = [PEOPLE.id_N[i] for i in session.design.order_A[:6]]
    for id_ in expected[:3]:
        assert session.next_id("me") == id_
        session.give(id_, "class", "class 2", "me")
    again = opened(record)
    assert again.next_id("me") == expected[3]
    assert again.told().class_M.tolist() == [2, 2, 2]
    assert (again.design.order_A == session.design.order_A).all()
    assert (again.design.stratum_N == session.design.stratum_N).all()


def test_an_answer_is_on_the_disk_before_it_counts(record: Run) -> None:
    session = opened(record)
    id_ = session.next_id("me")
    assert id_ is not None
    session.give(id_, "none", None, "me")
    stored = json.loads(Path(record.file(REVIEW)).read_bytes())
    assert [(a["id"], a["kind"]) for a in stored["answers"]] == [(id_, "none")]
    assert stored["design"] == {"seed": 0, "runs": ["zero-shot", "run"], "file": DESIGN}
    assert session.told().class_M.tolist() == [-1]


def test_what_cannot_be_told_is_answered_but_not_counted(record: Run) -> None:
    session = opened(record)
    id_ = session.next_id("me")
    assert id_ is not None
    session.give(id_, "cannot tell", None, "me")
    assert (session.count(), len(session.told().index_M)) == (1, 0)
    assert session.next_id("me") != id_


def test_two_people_get_different_images_and_lose_nothing(record: Run) -> None:
    clock = Clock()
    session = opened(record, clock)
    first, second = session.next_id("a"), session.next_id("b")
    assert first is not None
    assert second is not None
    assert first != second
    assert session.next_id("a") == first  # reloaded
    session.give(second, "class", "class 1", "b")
    session.give(first, "class", "class 0", "a")
    assert session.count() == 2
    third = session.next_id("a")
    assert third is not None
    clock.now += 301  # a has gone
    assert session.next_id("b") == third
    session.give(third, "class", "class 3", "b")
    session.give(third, "class", "class 4", "a")  # and comes back: the first answer counts, both are kept
    assert [a.name for a in opened(record).answers[-2:]] == ["class 3", "class 4"]
    assert session.told().class_M.tolist() == [1, 0, 3]


def test_undo_takes_back_ones_own_last_answer_and_shows_its_image(record: Run) -> None:
    session = opened(record)
    ids = []
    for who in ("a", "b"):
        id_ = session.next_id(who)
        assert id_ is not None
        session.give(id_, "class", "class 0", who)
        ids.append(id_)
    assert session.undo("a") == ids[0]
    assert session.next_id("a") == ids[0]
    assert [a.id for a in opened(record).answers] == [ids[1]]
    assert session.undo("a") is None


def test_answers_for_a_choice_are_kept_apart(record: Run) -> None:
    session = opened(record)
    id_ = session.next_id("a")
    assert id_ is not None
    session.give(id_, "class", "class 0", "a", FOR_CHOICE)
    assert (session.count(), session.count(FOR_CHOICE)) == (0, 1)
    assert len(session.told().index_M) == 0
    assert len(session.told(None).index_M) == 1
    assert session.next_id("b") == id_


@pytest.mark.parametrize(
    ("id_", "kind", "name"),
    [("../x", "class", "class 0"), (PEOPLE.id_N[0], "class", "zebra"), (PEOPLE.id_N[0], "none", "class 0"),
     (PEOPLE.id_N[0], "other", None), (PEOPLE.id_N[0], "class", None)],
)  # fmt: skip
def test_what_is_not_of_the_review_is_refused(record: Run, id_: str, kind: str, name: str | None) -> None:
    session = opened(record)
    with pytest.raises(UserError, match="reload the page"):
        session.give(id_, kind, name, "a")
    assert session.answers == []


def test_a_review_of_other_images_is_refused(record: Run) -> None:
    opened(record)
    with pytest.raises(UserError, match=r"review.json.* other images"):
        open_session(record, population(0, n=41)[0], seed=0)


def test_every_image_is_handed_out_once(record: Run) -> None:
    session = opened(record)
    seen = []
    while (id_ := session.next_id("a")) is not None:
        session.give(id_, "none", None, "a")
        seen.append(id_)
    assert sorted(seen) == sorted(PEOPLE.id_N)


KILLED = """
import os, sys
from raydapt.review.session import open_session
from raydapt.store.run_record import Run
from tests.review.test_session import PEOPLE
session = open_session(Run(sys.argv[1], "run"), PEOPLE, seed=0)
for _ in range(7):
    session.give(session.next_id("a"), "class", "class 0", "a")
os.kill(os.getpid(), 9)
"""


@pytest.mark.chaos
def test_nothing_is_lost_to_kill_9(record: Run, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert opened(record).count() == 7
