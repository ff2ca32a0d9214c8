"""A review as the page sees it: what to ask next, and what was said of an image.

While it is for estimates, the design decides what to ask. To choose among runs, `raydapt.review.choosing` decides, and
what it asks for is kept apart.
"""

from dataclasses import dataclass
from typing import Any

from raydapt.review.estimates import Estimator
from raydapt.review.population import Population
from raydapt.review.session import FOR_ESTIMATES, Session


@dataclass(kw_only=True)
class Review:
    """A session with what its answers say.

    Attributes:
        session: The answers.
        estimator: What they say of all images.
        wanted: Answers after which the page says that it is enough; one may go on.
    """

    session: Session
    estimator: Estimator
    wanted: int = 60

    @property
    def population(self) -> Population:
        """What is reviewed."""
        return self.session.population

    def next_id(self, reviewer: str) -> str | None:
        """The image to look at; None when every one in the design was answered."""
        return self.session.next_id(reviewer, FOR_ESTIMATES)

    def give(self, id_: str, kind: str, name: str | None, reviewer: str) -> None:
        """Stores an answer; see `Session.give`."""
        self.session.give(id_, kind, name, reviewer, FOR_ESTIMATES)

    def ahead_of(self, id_: str) -> list[str]:
        """The images that follow in the order of asking."""
        order, ids = self.session.design.order_A.tolist(), self.population.id_N
        index = self.session.index_of[id_]
        at = order.index(index) if index in order else len(order)
        return [ids[i] for i in order[at + 1 : at + 25]]

    def said(self, id_: str) -> dict[str, Any]:
        """What every answerer says of an image, once a person has said something."""
        index, people = self.session.index_of[id_], self.population
        own = next((answer for answer in reversed(self.session.answers) if answer.id == id_), None)
        return {
            "answer": None if own is None else (own.name or own.kind),
            "runs": [
                {"name": name, "class": people.classes[int(people.class_RN[r, index])]}
                for r, name in enumerate(people.names)
            ],
        }
