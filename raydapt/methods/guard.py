"""Is the adapted classifier safer than zero-shot? Evidence that reads no label, and a verdict with a reason.

Zero-shot is weak on average but honest about what it is sure of: where it gives a class 0.95, it is right about that
often, adapted or not. An adapted classifier that contradicts those answers much more often than their own
probability allows has moved away from the names. The images that zero-shot is unsure of are what adaptation is for:
there it has to show that images that look alike are answered more alike than before. One that has collapsed onto few
classes does not, since agreement counts beyond chance alone. And class shares differ from the true ones by no more than
the share of wrong answers: an adapted classifier whose shares lie farther from zero-shot's than zero-shot expects to be
wrong has made classes equal, or lost some.

Legend: N images, C classes, D width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.methods.even_sample import even_sample
from raydapt.methods.scores import nearest_images

Verdict = Literal["adapted", "mean of both", "zero-shot"]
SURENESS_POWER = 4
"""Weight of an image is the zero-shot probability of its class to this power."""
ALLOWED_EXCESS = 0.05
"""Contradictions beyond what zero-shot itself expects that the adapted classifier is still kept with."""
REJECTED_EXCESS = 0.15
"""From here on not even half of the adapted answer is kept."""
LEAST_GAIN = 0.0
"""Relative gain in the agreement of neighbours up to which adaptation has shown nothing: zero-shot is kept."""
CLEAR_GAIN = 0.1
"""Relative gain from which on the adapted classifier is kept alone."""
ALLOWED_MOVE = 1.2
"""Class shares may move by this many times what zero-shot expects to be wrong; beyond, half of it is kept."""
REJECTED_MOVE = 1.3
"""From here on not even half of the adapted answer is kept."""
_NEIGHBOURS = 5
SAMPLE = 4096
"""Images that the evidence is read off: enough for shares to a percent, and neighbours are looked for among them."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What speaks for or against the adapted classifier; shares between 0 and 1."""

    contradicted: float
    """Share of the sure zero-shot answers, weighted by p^4, that the adapted classifier contradicts."""
    expected: float
    """The share that zero-shot itself expects to be wrong: the mean of 1 - p, weighted by p^4."""
    moved: float
    """Total variation distance between both classifiers' class shares."""
    doubt: float
    """The share of all images that zero-shot expects to be wrong: the mean of 1 - p."""
    changed: float
    """Share of all images with another class than before."""
    neighbours_before: float
    """Share of an image's nearest others that zero-shot answers like it, beyond chance; from the same views."""
    neighbours_after: float
    """The same of the adapted classifier."""

    @property
    def excess(self) -> float:
        """Contradictions beyond the expected ones."""
        return self.contradicted - self.expected

    @property
    def gain(self) -> float:
        """How much more alike neighbours are answered than before."""
        return self.neighbours_after - self.neighbours_before

    @property
    def relative_gain(self) -> float:
        """The gain as a share of what was left to gain: where zero-shot answers neighbours alike already, little is."""
        return self.gain / max(1 - self.neighbours_before, 1e-3)

    @property
    def after_contradictions(self) -> Verdict:
        """What contradictions alone leave of the adapted classifier."""
        return _left(self.excess, allowed=ALLOWED_EXCESS, rejected=REJECTED_EXCESS)

    @property
    def after_moves(self) -> Verdict:
        """What the moved class shares alone leave of it."""
        return _left(self.moved, allowed=ALLOWED_MOVE * self.doubt, rejected=REJECTED_MOVE * self.doubt)

    @property
    def without_harm(self) -> Verdict:
        """What signs of harm leave of the adapted classifier: contradictions, moved shares, a clear loss in agreement.

        No gain is no sign of harm. A classifier among several may be useful without one: what they answer together is
        judged again.
        """
        left = (self.after_contradictions, self.after_moves)
        if "zero-shot" in left or self.relative_gain < -CLEAR_GAIN:
            return "zero-shot"
        return "mean of both" if "mean of both" in left else "adapted"


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A verdict, why, and the probabilities that follow from it."""

    verdict: Verdict
    sentence: str
    evidence: Evidence

    def probabilities(self, zero_NC: Tensor, adapted_NC: Tensor) -> Tensor:
        """The answer [N, C] that the verdict keeps."""
        if self.verdict == "adapted":
            return adapted_NC
        return zero_NC if self.verdict == "zero-shot" else (zero_NC + adapted_NC) / 2

    def as_metrics(self) -> dict[str, object]:
        """For a metrics file."""
        return {"verdict": self.verdict, "reason": self.sentence, **asdict(self.evidence)}


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """Which images of a set are looked at (S of them), and the K nearest of each among these."""

    row_S: Tensor
    """int64 rows."""
    index_SK: Tensor
    """int64 positions in `row_S`."""


def neighbourhood_of(feature_ND: Tensor) -> Neighbourhood:
    """The neighbours of an even sample, drawn in the order of one coordinate: it does not depend on the images' order.

    Args:
        feature_ND: L2-normalised features of the frozen model.
    """
    row_S = torch.arange(len(feature_ND), device=feature_ND.device)
    if len(row_S) > SAMPLE:
        row_S = even_sample(feature_ND[:, 0].argsort(), SAMPLE)
    return Neighbourhood(row_S=row_S, index_SK=nearest_images(F.normalize(feature_ND[row_S], dim=1), _NEIGHBOURS))


def evidence(
    zero_NC: Tensor, adapted_NC: Tensor, images: Tensor | Neighbourhood, *, views_NC: Tensor | None = None
) -> Evidence:
    """What can be told without labels.

    Args:
        zero_NC: Zero-shot probabilities.
        adapted_NC: The adapted classifier's, of the same images.
        images: Their L2-normalised features of the frozen model, or the neighbours, for who judges them repeatedly.
        views_NC: Zero-shot's from what the adapted classifier reads, where this is not the whole images (crops). The
            answers for images that look alike as a whole differ as their crops do, whatever was learned: so the
            agreement of neighbours is compared with that of these.
    """
    near = images if isinstance(images, Neighbourhood) else neighbourhood_of(images)
    sure_N, zero_N = zero_NC.max(dim=1)
    before_N = zero_N if views_NC is None else views_NC.argmax(dim=1)
    adapted_N = adapted_NC.argmax(dim=1)
    weight_N = sure_N.double() ** SURENESS_POWER
    weight_N = weight_N / weight_N.sum()
    differs_N = (zero_N != adapted_N).double()
    n_classes = zero_NC.shape[1]
    shares = [torch.bincount(class_N, minlength=n_classes).double() / len(class_N) for class_N in (zero_N, adapted_N)]
    return Evidence(
        contradicted=float(weight_N @ differs_N),
        expected=float(weight_N @ (1 - sure_N.double())),
        moved=float((shares[0] - shares[1]).abs().sum()) / 2,
        doubt=float((1 - sure_N.double()).mean()),
        changed=float(differs_N.mean()),
        neighbours_before=_alike(before_N[near.row_S], near.index_SK, n_classes),
        neighbours_after=_alike(adapted_N[near.row_S], near.index_SK, n_classes),
    )


def judge(
    zero_NC: Tensor, adapted_NC: Tensor, images: Tensor | Neighbourhood, *, views_NC: Tensor | None = None
) -> Guarded:
    """The verdict on an adapted classifier; arguments as of `evidence`.

    Thresholds were chosen on development sets and their shifted variants (docs/trust.md). The mean of both
    softmaxes is the first fallback: it has no parameter, and its worst case is a fraction of the adapted one's.
    A classifier that reads other views than zero-shot always answers together with it, and needs no gain: two views
    know more than one.
    """
    found = evidence(zero_NC, adapted_NC, images, views_NC=views_NC)
    contradicts = (
        f"it contradicts {found.contradicted:.0%} of what zero-shot is sure of, where {found.expected:.0%} are "
        "expected to be wrong"
    )
    alike = (
        f"neighbours are answered alike in {found.neighbours_after:.2f} of the cases beyond chance, "
        f"{found.neighbours_before:.2f} {'before' if views_NC is None else 'by zero-shot from the same crops'}"
    )
    moves = (
        f"adaptation moves the class shares by {found.moved:.0%} of the images, where zero-shot expects "
        f"{found.doubt:.0%} to be wrong"
    )
    verdict: Verdict
    if found.after_contradictions == "zero-shot":
        verdict = "zero-shot"
        reason = f"Zero-shot is kept, against the adapted classifier: {contradicts}."
    elif found.after_moves == "zero-shot":
        verdict, reason = "zero-shot", f"Zero-shot is kept, since {moves}."
    elif views_NC is not None:
        verdict = "zero-shot" if found.without_harm == "zero-shot" else "mean of both"
        kept = "Zero-shot is kept" if verdict == "zero-shot" else "The mean of adapted and zero-shot is kept"
        reason = f"{kept}: {alike}."
    elif found.relative_gain <= LEAST_GAIN:
        verdict, reason = "zero-shot", f"Zero-shot is kept, since adaptation shows no gain: {alike}."
    elif found.after_contradictions == "mean of both":
        verdict, reason = "mean of both", f"The mean of adapted and zero-shot is kept: alone, {contradicts}."
    elif found.after_moves == "mean of both":
        verdict, reason = "mean of both", f"The mean of adapted and zero-shot is kept, since {moves}."
    elif found.relative_gain < CLEAR_GAIN:
        verdict = "mean of both"
        reason = f"The mean of adapted and zero-shot is kept, since the gain is small: {alike}."
    else:
        verdict, reason = "adapted", f"The adapted classifier is kept: {alike}, and {contradicts}."
    return Guarded(verdict=verdict, sentence=reason, evidence=found)


def _left(value: float, *, allowed: float, rejected: float) -> Verdict:
    if value > rejected:
        return "zero-shot"
    return "mean of both" if value > allowed else "adapted"


def _alike(class_S: Tensor, neighbour_SK: Tensor, n_classes: int) -> float:
    """(observed - chance) / (1 - chance) of neighbours with the same class; 0 where all images have one class."""
    if not neighbour_SK.shape[1]:
        return 0.0
    observed = float((class_S[neighbour_SK] == class_S[:, None]).double().mean())
    share_C = torch.bincount(class_S, minlength=n_classes).double() / len(class_S)
    chance = float((share_C**2).sum())
    return (observed - chance) / (1 - chance) if chance < 1 else 0.0
