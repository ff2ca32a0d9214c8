"""What transduction says of the images that were fitted, beside its answers for new ones. Labels are for measuring.

Legend: N training images, C classes.
"""

from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from raydapt.artefacts.answers import mean_answers
from raydapt.artefacts.rows import rows_of
from raydapt.artefacts.words import words_at
from raydapt.methods.best_classes import best_classes
from raydapt.methods.spec import FinishedRun
from raydapt.methods.transduct.method import FITTED


def transductive_outcome(finished: FinishedRun) -> dict[str, Any]:
    """Writes ``transductive.parquet`` (id, path, zero_shot, predicted, confidence) and returns the group ``transduct``.

    Accuracies are percent of the training images with a label: zero-shot's own, that of the mean of the runs in
    ``transduct.over`` (``over``, only with such), and the fit's.
    """
    names, table, row_N = finished.classes.names, finished.table, finished.row_N
    class_N = finished.state[f"{FITTED}class_N"].cpu()
    share_C = finished.state[f"{FITTED}log_prior_C"].exp().tolist()
    class_CD = finished.clip.class_embeddings(names, finished.classes.templates[:1])
    before_N = best_classes(
        rows_of(table.feature_ND, row_N), lambda feature_BD: (feature_BD.to(class_CD) @ class_CD.T).cpu()
    )[1]
    fitted = {
        "id": words_at(table.id_N, row_N),
        "path": words_at(table.path_N, row_N),
        "zero_shot": words_at(names, before_N),
        "predicted": words_at(names, class_N),
        "confidence": finished.state[f"{FITTED}confidence_N"].cpu().numpy(),
    }
    finished.record.write_table("transductive.parquet", pa.table(fitted))
    truth_N, over_AC = finished.class_A[row_N], mean_answers(finished.artefacts)
    over = {} if over_AC is None else {"over": _accuracies(over_AC[row_N].argmax(dim=1), truth_N)}
    return over | {
        "images": len(class_N),
        "zero_shot": _accuracies(before_N, truth_N),
        "adapted": _accuracies(class_N, truth_N),
        "shares": [{"class": name, "share": share} for name, share in zip(names, share_C, strict=True)],
    }


def _accuracies(class_N: Tensor, truth_N: Tensor) -> dict[str, float | None]:
    """Top-1 and the mean over the classes that have labelled images; null without labels."""
    known_N = truth_N >= 0
    if not bool(known_N.any()):
        return {"top1": None, "mean_per_class": None}
    right_M, truth_M = (class_N == truth_N)[known_N], truth_N[known_N]
    images_C, right_C = torch.bincount(truth_M), torch.bincount(truth_M, weights=right_M.double())
    recall_C = right_C[images_C > 0] / images_C[images_C > 0]
    return {"top1": 100.0 * float(right_M.double().mean()), "mean_per_class": 100.0 * float(recall_C.mean())}
