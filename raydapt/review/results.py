"""The results of a review, for the page, the terminal and ``review-results.json``. Shares are in percent here."""

from typing import Any

from raydapt.review.choosing import Standing
from raydapt.review.estimates import Estimate
from raydapt.review.review import Review
from raydapt.review.session import FOR_CHOICE

RESULTS, CHOICE = "review-results.json", "review-choice.json"


def headline(review: Review) -> dict[str, Any]:
    """What the page shows after every answer."""
    session, estimator = review.session, review.estimator
    if (standing := review.standing()) is not None:
        return _of_choice(review, standing)
    answers = session.told()
    ready = estimator.ready(answers)
    runs: list[dict[str, Any]] = []
    for r, name in enumerate(review.population.names):
        runs.append({"name": name} | (percent(estimator.accuracy(answers, r)) if ready else {}))
    return {"answered": session.count(), "wanted": review.wanted, "ready": ready, "settled": False, "runs": runs}


def _of_choice(review: Review, standing: Standing) -> dict[str, Any]:
    """What a review that chooses tells: the probability of being the best, in percent, likeliest first."""
    chance_R, names = 100.0 * standing.chance_R, review.population.names
    order = sorted(range(len(names)), key=lambda r: (r != standing.leader, -chance_R[r]))
    return {
        "answered": review.session.count(FOR_CHOICE),
        "wanted": review.wanted,
        "ready": True,
        "settled": standing.settled,
        "sure": 100.0 * standing.sure,
        "runs": [{"name": names[r], "chance": float(chance_R[r])} for r in order],
    }


def choice(review: Review) -> dict[str, Any]:
    """What a review that chooses came to, for ``review-choice.json``."""
    told = headline(review)
    told["disputed"] = 0 if review.chooser is None else len(review.chooser.disputed_D)
    return told | {"chosen": told["runs"][0]["name"], "images": len(review.population.id_N)}


def format_choice(told: dict[str, Any]) -> str:
    """The choice as lines for a terminal."""
    lines = [f"{told['answered']} answers; the runs differ on {told['disputed']:,} of {told['images']:,} images"]
    if told["settled"]:
        lines.append(f"Take {told['chosen']}: it, or a run that hardly differs from it, is the best with 95 %.")
    else:
        lines.append(f"Ahead: {told['chosen']} ({told['sure']:.0f} % sure; 95 % would settle it).")
    width = max(len(run["name"]) for run in told["runs"])
    lines.append(f"{'probability of being the best':<{width}}")
    return "\n".join([*lines, *(f"  {run['name']:<{width}}  {run['chance']:5.1f} %" for run in told["runs"][:5])])


def results(review: Review) -> dict[str, Any]:
    """Everything that the answers say; figures are absent before there are enough answers for an interval."""
    session, estimator, people = review.session, review.estimator, review.population
    answers = session.told()
    told: dict[str, Any] = headline(review) | {
        "images": len(people.id_N),
        "told": len(answers.index_M),
        "cannot_tell": session.count() - len(answers.index_M),
        "design": {"seed": session.design.seed, "runs": list(session.made_by), "strata": estimator.strata()},
    }
    if not told["ready"]:
        return told
    *shares, none = estimator.class_shares(answers)
    for r, run in enumerate(told["runs"]):
        if r:
            run["over_zero_shot"] = percent(estimator.difference(answers, r, 0))
        of_class = zip(people.classes, estimator.recalls(answers, r), estimator.precisions(answers, r), strict=True)
        run["per_class"] = [
            {"name": name, "recall": recall and percent(recall), "precision": precision and percent(precision)}
            for name, recall, precision in of_class
        ]
    told["none_of_these"] = percent(none)
    told["class_shares"] = [{"name": name} | percent(share) for name, share in zip(people.classes, shares, strict=True)]
    return told


def format_results(told: dict[str, Any]) -> str:
    """The results as lines for a terminal."""
    lines = [f"{told['answered']} of {told['images']:,} images answered, {told['cannot_tell']} of them: cannot tell"]
    if not told["ready"]:
        return "\n".join([*lines, "Too few for an interval: go on."])
    width = max(len(run["name"]) for run in told["runs"])
    lines.append(f"{'accuracy':<{width}}  {'%':>6}  {'95 % interval':>15}  over zero-shot")
    for run in told["runs"]:
        over = run.get("over_zero_shot")
        gain = "" if over is None else f"{over['value']:+.1f} ({over['low']:+.1f} to {over['high']:+.1f})"
        lines.append(f"{run['name']:<{width}}  {run['value']:6.1f}  {run['low']:6.1f} to {run['high']:5.1f}  {gain}")
    none = told["none_of_these"]
    lines.append(f"None of these classes: {none['value']:.1f} % ({none['low']:.1f} to {none['high']:.1f})")
    lines.append("Shares of the classes, %:")
    lines += [f"  {c['name']}: {c['value']:.1f} ({c['low']:.1f} to {c['high']:.1f})" for c in told["class_shares"]]
    return "\n".join(lines)


def percent(estimate: Estimate) -> dict[str, float]:
    """An estimate in percent."""
    return {name: 100.0 * getattr(estimate, name) for name in ("value", "low", "high")}
