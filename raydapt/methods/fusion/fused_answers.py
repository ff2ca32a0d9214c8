"""What of each classifier is fused, by the evidence of its own guard."""

from collections.abc import Sequence

from raydapt.methods.fusion.settings import FusedAnswers
from raydapt.methods.guard import Evidence, Verdict


def fused_answers(
    verdicts: Sequence[Verdict], evidence: Sequence[Evidence | None], answers: FusedAnswers = "auto"
) -> list[Verdict]:
    """What they learned, so far as there is no sign of harm; where one of them does harm, what their guards say of all.

    Classes that are unequal or absent harm some methods sooner than others: where the first is found out, the rest are
    not believed without a gain of their own.

    Args:
        verdicts: What the classifiers answer with.
        evidence: Of their guards; None where there was none.
        answers: ``fusion.answers``: this rule, or one of the two for all in any case.
    """
    if answers == "adapted":
        return ["adapted"] * len(verdicts)
    if answers == "guarded":
        return list(verdicts)
    unharmed: list[Verdict] = ["adapted" if found is None else found.without_harm for found in evidence]
    return list(verdicts) if "zero-shot" in unharmed else unharmed
