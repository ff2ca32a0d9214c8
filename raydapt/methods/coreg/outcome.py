"""What Co-Reg's annotation and co-training came to. Labels are read here, for measuring alone.

Legend: N training images, T test images, A all images of the source, C classes, E traced epochs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydapt.artefacts.partial_labels import KIND, PartialLabels, load_partial_labels
from raydapt.methods.coreg.deployed import DeployedStudents
from raydapt.methods.coreg.method import CoReg
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.methods.deployed import deployed_clip
from raydapt.methods.predictions import predict_classes
from raydapt.methods.spec import FinishedRun
from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.models.deployed import size_and_speed

_BINS = 20


def coreg_outcome(finished: FinishedRun) -> dict[str, Any]:
    """The ``coreg`` group of metrics.json: annotation, division, students, size and speed of what is deployed."""
    device, clip = finished.device, finished.clip
    plain = ZeroShot(clip, clip.class_embeddings(finished.classes.names, finished.classes.templates[:1])).to(device)
    rows = torch.arange(len(finished.class_A))
    zero_shot = predict_classes(plain, finished.table.feature_ND, rows, batch_size=1024, device=device)
    partial = load_partial_labels(finished.artefacts[KIND])
    metrics = coreg_metrics(
        finished.state, partial, zero_shot.class_T, finished.class_A, row_N=finished.row_N, row_T=finished.row_T
    )
    assert isinstance(finished.method, CoReg)
    if finished.method.input_kind == "features":  # a matrix beside an image tower: nothing to weigh against it
        return metrics
    side_px = finished.config.of(CoregSettings).image_size_px
    metrics["deployment"] = {
        "student": size_and_speed(DeployedStudents(finished.method).eval(), side_px, device),
        "clip_image_tower": size_and_speed(deployed_clip(plain, clip), clip.image_spec.size_px, device),
        "clip_parameters": sum(p.numel() for p in clip.model.parameters()),
    }
    return metrics


def coreg_metrics(
    state: Mapping[str, Tensor],
    partial: PartialLabels,
    zero_shot_A: Tensor,
    class_A: Tensor,
    *,
    row_N: Tensor,
    row_T: Tensor,
) -> dict[str, Any]:
    """The ``coreg`` group of metrics.json.

    Args:
        state: The method's tensors at the end.
        partial: Partial labels of all images.
        zero_shot_A: int64 class that the first template gives to each image.
        class_A: True classes, -1 where unknown.
        row_N: Rows of the training images.
        row_T: Rows of the test images.
    """
    return {
        "annotation": _annotation(partial, zero_shot_A, class_A, row_N, row_T),
        "division": _division(state["memory.clean_2N"]),
        "students": _students(state["memory.answer_T2N"], state["memory.trace_epoch_T"], class_A[row_N]),
    }


def _annotation(
    partial: PartialLabels, zero_shot_A: Tensor, class_A: Tensor, row_N: Tensor, row_T: Tensor
) -> dict[str, Any]:
    """The rows of the paper's table 1 that need no training: candidates, noise, zero-shot and its mean (*)."""
    candidate_NC = partial.rows(row_N).candidate_NC
    size_N = torch.from_numpy(np.diff(candidate_NC.indptr))
    known_N = class_A[row_N] >= 0
    missing = None
    if bool(known_N.any()):
        row_E, class_E = torch.arange(len(row_N)).repeat_interleave(size_N), torch.from_numpy(candidate_NC.indices)
        holds_N = torch.zeros(len(row_N), dtype=torch.bool)
        holds_N[row_E[class_E == class_A[row_N][row_E]]] = True
        missing = 100.0 * float((~holds_N[known_N]).float().mean())
    mean_A = partial.likeliest_N
    return {
        "candidates": float(size_N.float().mean()),
        "candidate_counts": torch.bincount(size_N, minlength=candidate_NC.shape[1] + 1).tolist(),
        "truth_missing": missing,
        "zero_shot_train": _accuracy(zero_shot_A[row_N], class_A[row_N]),
        "zero_shot_mean_train": _accuracy(mean_A[row_N], class_A[row_N]),
        "zero_shot_test": _accuracy(zero_shot_A[row_T], class_A[row_T]),
        "zero_shot_mean_test": _accuracy(mean_A[row_T], class_A[row_T]),
    }


def _division(clean_2N: Tensor) -> dict[str, Any]:
    """How the images were divided for each student at the last: shares of the posterior in bins of 0.05."""
    return {
        "histogram": [torch.histc(clean_N, _BINS, 0.0, 1.0).int().tolist() for clean_N in clean_2N.float()],
        "believed": [100.0 * float((clean_N > 0.5).float().mean()) for clean_N in clean_2N],
    }


def _students(answer_E2N: Tensor, epoch_E: Tensor, class_N: Tensor) -> list[dict[str, Any]]:
    """Accuracy of both students on the training images, and how often they disagree, over the epochs."""
    lines = []
    for epoch, answer_2N in zip(epoch_E.tolist(), answer_E2N.long(), strict=True):
        if int(answer_2N.min()) >= 0:
            lines.append(
                {
                    "epoch": epoch,
                    "first": _accuracy(answer_2N[0], class_N),
                    "second": _accuracy(answer_2N[1], class_N),
                    "disagreement": 100.0 * float((answer_2N[0] != answer_2N[1]).float().mean()),
                }
            )
    return lines


def _accuracy(guess_M: Tensor, class_M: Tensor) -> float | None:
    known_M = class_M >= 0
    return 100.0 * float((guess_M == class_M)[known_M].float().mean()) if bool(known_M.any()) else None
