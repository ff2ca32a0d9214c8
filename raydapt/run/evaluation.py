"""What a finished training comes to: predictions, accuracies, pseudo-label quality, gallery. Labels are read here.

Legend: N rows of the features artefact, T test images, U unlabelled, M selected or synthetic images, C classes,
D width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raydapt.data.classes import ClassSpace
from raydapt.methods.contract import Method, PseudoLabels, SyntheticImages
from raydapt.run.accuracy import Accuracies, evaluate, pseudo_label_accuracy
from raydapt.settings.groups import TrainSettings
from raydapt.stages.features import FeatureTable
from raydapt.train.checkpoint import TrainState


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """The best class of each of T images, its probability, and how informative the answers are together."""

    class_T: Tensor
    confidence_T: Tensor
    mutual_information: float
    """Between image and predicted class, as a share of log C: 0 (all the same, or all undecided) to 1."""


@torch.no_grad()
def guess(method: Method, image_N: Tensor, row_T: Tensor, *, batch_size: int, device: torch.device) -> Guesses:
    """Predicts images by their rows; no more than one batch of probabilities is ever held.

    The mutual information is H(mean p) - mean H(p) over the images (Bridle, Heading & MacKay, NIPS 1991).

    Args:
        method: Any method, on `device`.
        image_N: Features [N, D] or uint8 pixels [N, 3, S, S], as the method takes them.
        row_T: int64 rows to predict, at least one.
        batch_size: Images at a time.
        device: Of the method.
    """
    method.eval()
    classes, confidences = [], []
    sum_C, entropy = torch.zeros(()), 0.0
    for row_B in torch.split(row_T, batch_size):
        probability_BC = method.logits(image_N[row_B].to(device)).double().softmax(-1).cpu()
        best = probability_BC.max(-1)
        classes.append(best.indices)
        confidences.append(best.values.float())
        sum_C = sum_C + probability_BC.sum(0)
        entropy += float(_entropy(probability_BC).sum())
    information = float(_entropy(sum_C / len(row_T))) - entropy / len(row_T)
    return Guesses(
        class_T=torch.cat(classes),
        confidence_T=torch.cat(confidences),
        mutual_information=information / math.log(len(sum_C)),
    )


def _entropy(probability: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probability).sum(-1)
    return entropy


def predictions_table(
    table: FeatureTable, labels: list[str | None], classes: ClassSpace, row_T: Tensor, before: Guesses, after: Guesses
) -> pa.Table:
    """``predictions.parquet``: one row per test image, with the zero-shot answer beside the adapted one.

    ``label`` is what the source says, ``class`` the name of the class that it means, null for neither.
    """
    rows = row_T.tolist()
    name = np.asarray([*classes.names, None], dtype=object)  # index -1, unknown, is the None at the end
    true_T = classes.indices_of([labels[r] for r in rows])
    return pa.table(
        {
            "id": [table.id_N[r] for r in rows],
            "path": [table.path_N[r] for r in rows],
            "split": [table.split_N[r] for r in rows],
            "label": pa.array([labels[r] for r in rows], pa.string()),
            "class": pa.array(name[true_T].tolist(), pa.string()),
            "zero_shot": name[before.class_T.numpy()].tolist(),
            "zero_shot_confidence": before.confidence_T.numpy(),
            "predicted": name[after.class_T.numpy()].tolist(),
            "confidence": after.confidence_T.numpy(),
        }
    )


def pseudo_labels_table(history: list[PseudoLabels], id_N: list[str], names: tuple[str, ...]) -> pa.Table:
    """``pseudo_labels.parquet``: what each round gave to which image (ids of the training images in `id_N`)."""
    columns: dict[str, list[Any]] = {"round": [], "id": [], "classes": [], "weights": []}
    for round_, labels in enumerate(history, start=1):
        for index, target_C in zip(labels.index_M.tolist(), labels.target_MC, strict=True):
            chosen = target_C.nonzero().flatten()
            columns["round"].append(round_)
            columns["id"].append(id_N[index])
            columns["classes"].append([names[c] for c in chosen.tolist()])
            columns["weights"].append(target_C[chosen].tolist())
    types = [pa.int32(), pa.string(), pa.list_(pa.string()), pa.list_(pa.float32())]
    return pa.table({name: pa.array(c, t) for (name, c), t in zip(columns.items(), types, strict=True)})


def round_metrics(history: list[PseudoLabels], class_N: Tensor, unlabelled_U: Tensor) -> list[dict[str, Any]]:
    """Number and accuracy of the pseudo-labels of each round; accuracies are null without labels.

    Where several judges gave them together, ``judges`` tells how many of all unlabelled images each has right.
    """
    rounds: list[dict[str, Any]] = []
    known_U = class_N[unlabelled_U] >= 0
    true_U = class_N[unlabelled_U][known_U]
    for round_, labels in enumerate(history, start=1):
        quality = pseudo_label_accuracy(labels.index_M, labels.target_MC, class_N)
        rounds.append(
            {
                "round": round_,
                "selected": quality.selected,
                "accuracy": quality.top1,
                "holds_truth": quality.holds_truth,
                "waiting": labels.waiting,
                "dropped": labels.dropped,
            }
        )
        if labels.guesses:
            right = {name: guess_U[known_U] == true_U for name, guess_U in labels.guesses.items()}
            rounds[-1]["judges"] = {name: _share(right_U) for name, right_U in right.items()}
    return rounds


def add_scores(rounds: list[dict[str, Any]], lines: Sequence[Mapping[str, Any]]) -> None:
    """Puts the last label-free scores that the log has of each round beside its pseudo-labels."""
    found = {int(line["round"]): line["scores"] for line in lines if "scores" in line}
    for entry in rounds:
        entry["scores"] = found.get(entry["round"])


def evaluation_metrics(
    before: Accuracies, after: Accuracies, names: tuple[str, ...], *, images: int, transductive: bool
) -> dict[str, Any]:
    """The ``evaluation`` group of metrics.json: per class before and after, and the confusion matrix."""
    per_class = []
    if after.confusion_CC is not None:
        counts_C = after.confusion_CC.sum(1).tolist()
        for i, name in enumerate(names):
            row = {"name": name, "images": counts_C[i]}
            per_class.append(row | {"zero_shot": before.per_class[i], "adapted": after.per_class[i]})
    return {
        "images": images,
        "labelled_images": after.images,
        "transductive": transductive,
        "confusion": None if after.confusion_CC is None else after.confusion_CC.tolist(),
        "per_class": per_class,
    }


def compare_guesses(
    before: Guesses,
    after: Guesses,
    class_T: Tensor,
    n_classes: int,
    seen: Sequence[int] | None,
    unseen: Sequence[int] | None,
) -> tuple[Accuracies, Accuracies]:
    """Accuracies of the zero-shot and of the adapted answers over the same images."""
    return (
        evaluate(before.class_T, class_T, n_classes, seen, unseen),
        evaluate(after.class_T, class_T, n_classes, seen, unseen),
    )


def train_metrics(state: TrainState, settings: TrainSettings) -> dict[str, Any]:
    """The ``train`` group of metrics.json; ``capped`` tells that more images would not have meant more steps."""
    rate = state.images / state.seconds if state.seconds else 0.0
    capped = settings.max_steps_per_round is not None
    measured = {"seconds": state.seconds, "images": state.images, "images_per_s": rate}
    return measured | {"workers": settings.workers, "capped": capped}


def synthetic_metrics(
    synthetic: SyntheticImages, class_CD: Tensor, names: Sequence[str], *, top: int
) -> dict[str, Any]:
    """The ``synthetic`` group of metrics.json: how many images zero-shot takes for the class that they were made of.

    Args:
        synthetic: The images.
        class_CD: Class embeddings of the plain prompt.
        names: Of the classes.
        top: Ranks up to which a class is also counted as accepted.
    """
    score_MC, class_M = synthetic.feature_MD @ class_CD.cpu().T, synthetic.class_M
    rank_M = (score_MC > score_MC.gather(1, class_M[:, None])).sum(dim=1)
    per_class = [
        {"name": name, "images": int((class_M == c).sum()), "accepted": _share(rank_M[class_M == c] == 0)}
        for c, name in enumerate(names)
    ]
    shares = {"accepted": _share(rank_M == 0), "top": top, "accepted_in_top": _share(rank_M < top)}
    return {"images": len(class_M), **shares, "per_class": per_class}


def _share(right_M: Tensor) -> float | None:
    """Percent; None of nothing."""
    return 100.0 * float(right_M.double().mean()) if len(right_M) else None


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())
