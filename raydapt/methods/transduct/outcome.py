"""What transduction says of the images that were fitted, beside its answers for new ones. Labels are for measuring.

Legend: N training images, C classes.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raydapt.artefacts.answers import mean_answers
from raydapt.methods.predictions import predict_classes
from raydapt.methods.spec import FinishedRun
from raydapt.methods.transduct.method import FITTED
from raydapt.methods.zero_shot.method import ZeroShot


def transductive_outcome(finished: FinishedRun) -> dict[str, Any]:
    """Writes ``transductive.parquet`` (id, path, zero_shot, predicted, confidence) and returns the group ``transduct``.

    Accuracies are percent of the training images with a label: zero-shot's own, that of the mean of the runs in
    ``transduct.over`` (``over``, only with such), and the fit's.
    """
    names, table, row_N = finished.classes.names, finished.table, finished.row_N
    class_N = finished.state[f"{FITTED}class_N"].cpu()
    share_C = finished.state[f"{FITTED}log_prior_C"].exp().tolist()
    class_CD = finished.clip.class_embeddings(names, finished.classes.templates[:1])
    plain = ZeroShot(finished.clip, class_CD).to(finished.device)
    before = predict_classes(plain, table.feature_ND, row_N, batch_size=1024, device=finished.device)
    name_C = np.asarray(names, dtype=object)
    fitted = {
        "id": [table.id_N[row] for row in row_N.tolist()],
        "path": [table.path_N[row] for row in row_N.tolist()],
        "zero_shot": name_C[before.class_T.numpy()].tolist(),
        "predicted": name_C[class_N.numpy()].tolist(),
        "confidence": finished.state[f"{FITTED}confidence_N"].cpu().numpy(),
    }
    finished.record.write_table("transductive.parquet", pa.table(fitted))
    truth_N, over_AC = finished.class_A[row_N], mean_answers(finished.artefacts)
    over = {} if over_AC is None else {"over": _accuracies(over_AC[row_N].argmax(dim=1), truth_N)}
    return over | {
        "images": len(class_N),
        "zero_shot": _accuracies(before.class_T, truth_N),
        "adapted": _accuracies(class_N, truth_N),
        "shares": [{"class": name, "share": share} for name, share in zip(names, share_C, strict=True)],
    }


def _accuracies(class_N: Tensor, truth_N: Tensor) -> dict[str, float | None]:
    """Top-1 and the mean over the classes that have labelled images; null without labels."""
    known_N = truth_N >= 0
    if not bool(known_N.any()):
        return {"top1": None, "mean_per_class": None}
    right_M, truth_M = (class_N == truth_N)[known_N].double(), truth_N[known_N]
    recalls = [float(right_M[truth_M == class_].mean()) for class_ in torch.unique(truth_M)]
    return {"top1": 100.0 * float(right_M.mean()), "mean_per_class": 100.0 * sum(recalls) / len(recalls)}
