"""A review as the page sees it: what to ask next, and what was said of an image.

While it is for estimates, the design decides what to ask. To choose among runs, `raydapt.review.choosing` decides, and
what it asks for is kept apart.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from raydapt.review.choosing import Chooser, Standing
from raydapt.review.estimates import Estimator
from raydapt.review.population import Population
from raydapt.review.session import FOR_CHOICE, FOR_ESTIMATES, Session

_MOST_NAMED = 6


@dataclass(kw_only=True)
class Review:
    """A session with what its answers say.

    Attributes:
        session: The answers.
        estimator: What they say of all images.
        wanted: Answers after which the page says that it is enough; one may go on.
        chooser: Chooses among the runs; None while it is for estimates.
    """

    session: Session
    estimator: Estimator
    wanted: int = 60
    chooser: Chooser | None = None

    @property
    def population(self) -> Population:
        """What is reviewed."""
        return self.session.population

    @property
    def purpose(self) -> str:
        """Why images are asked about: what answers are stored as."""
        return FOR_ESTIMATES if self.chooser is None else FOR_CHOICE

    def standing(self) -> Standing | None:
        """Where the runs stand, by all answers, those of the random sample too; None while it is for estimates."""
        return None if self.chooser is None else self.chooser.standing(self.session.told(None))

    def next_id(self, reviewer: str) -> str | None:
        """The image to look at; None when every one that could be asked about was, or when a choice is settled."""
        if self.chooser is None:
            return self.session.next_id(reviewer, FOR_ESTIMATES)
        answers = self.session.told(None)
        if self.chooser.standing(answers).settled:
            return None
        return self.session.next_id(reviewer, FOR_CHOICE, self.chooser.order(answers, self._count()))

    def give(self, id_: str, kind: str, name: str | None, reviewer: str) -> None:
        """Stores an answer; see `Session.give`."""
        self.session.give(id_, kind, name, reviewer, self.purpose)

    def ahead_of(self, id_: str) -> list[str]:
        """The images that follow in the order of asking."""
        ids = self.population.id_N
        if self.chooser is not None:
            return [ids[i] for i in self.chooser.order(self.session.told(None)) if ids[i] != id_]
        order = self.session.design.order_A.tolist()
        index = self.session.index_of[id_]
        at = order.index(index) if index in order else len(order)
        return [ids[i] for i in order[at + 1 : at + 25]]

    def _count(self) -> int:
        """Enough images in the order that those which nobody could tell, or others hold, leave one."""
        return 24 + len(self.session.answers)

    def said(self, id_: str) -> dict[str, Any]:
        """What every answerer says of an image, once a person has said something."""
        index, people = self.session.index_of[id_], self.population
        own = next((answer for answer in reversed(self.session.answers) if answer.id == id_), None)
        said = [people.classes[c] for c in people.class_RN[:, index].tolist()]
        runs = [{"name": name, "class": class_} for name, class_ in zip(people.names, said, strict=True)]
        if len(runs) > _MOST_NAMED:
            runs = [{"name": f"{count} say", "class": class_} for class_, count in Counter(said).most_common()]
        return {"answer": None if own is None else (own.name or own.kind), "runs": runs}
