"""What fusion says of its classifiers: how much of each counts, and what the answer would be without it.

Legend: A all images, N training images, C classes.
"""

from typing import Any

from raydapt.artefacts.answers import ANSWERS, load_answers, mean_answers
from raydapt.methods.spec import FinishedRun

_WEIGHTS = {"adapted": 1.0, "mean of both": 0.5, "zero-shot": 0.0}


def fusion_outcome(finished: FinishedRun) -> dict[str, Any]:
    """One entry a classifier, over the training images: its run, what its guard kept, and the weight that follows.

    ``agrees`` is the percent of the images that it gives the class of the mean, ``moves`` the percent that the mean of
    the others gives another class, ``top1`` its accuracy, null without labels.
    """
    mean_AC = mean_answers(finished.artefacts)
    names = [name for name in finished.artefacts if name.startswith(f"{ANSWERS}_")]
    if mean_AC is None:
        return {"classifiers": []}
    row_N, count = finished.row_N, len(names)
    mean_NC, truth_N = mean_AC[row_N], finished.class_A[row_N]
    class_N, known_N, rows = mean_NC.argmax(dim=1), truth_N >= 0, []
    for name in names:
        own_NC = load_answers(finished.artefacts[name])[row_N]
        others_N = (count * mean_NC - own_NC).argmax(dim=1)
        own_N = own_NC.argmax(dim=1)
        told = finished.artefacts[name].manifest.stats
        answer = str(told.get("answer", "adapted"))
        rows.append(
            {
                "run": told.get("run", name),
                "answer": answer,
                "weight": _WEIGHTS[answer] / count,
                "agrees": _percent(own_N == class_N),
                "moves": _percent(others_N != class_N) if count > 1 else None,
                "top1": _percent((own_N == truth_N)[known_N]),
            }
        )
    return {"classifiers": rows}


def _percent(right_M: Any) -> float | None:
    return 100.0 * float(right_M.double().mean()) if len(right_M) else None
