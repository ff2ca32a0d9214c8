"""What a finished training comes to: predictions, accuracies, pseudo-label quality, gallery. Labels are read here.

Legend: N rows of the features artefact, T test images, U unlabelled, M selected or synthetic images, C classes,
D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from raydapt.artefacts.features import FeatureTable
from raydapt.artefacts.words import words_at
from raydapt.data.classes import ClassSpace
from raydapt.methods.contract import PseudoLabels
from raydapt.methods.predictions import Predictions
from raydapt.methods.targets import sparse
from raydapt.run.accuracy import Accuracies, evaluate, pseudo_label_accuracy
from raydapt.settings.groups import TrainSettings
from raydapt.train.checkpoint import TrainState


def predictions_table(
    table: FeatureTable,
    labels: list[str | None],
    classes: ClassSpace,
    row_T: Tensor,
    before: Predictions,
    after: Predictions,
    adapted: Predictions,
) -> pa.Table:
    """``predictions.parquet``: one row per test image, with the zero-shot answer beside the run's and the adapted one.

    The run's answer, ``predicted``, is the adapted one unless its guard kept another (see `raydapt.run.guarding`).

    ``label`` is what the source says, ``class`` the name of the class that it means, null for neither.
    """
    rows = row_T.tolist()
    true_T = classes.indices_of([labels[r] for r in rows])
    return pa.table(
        {
            "id": words_at(table.id_N, row_T),
            "path": words_at(table.path_N, row_T),
            "split": [table.split_N[r] for r in rows],
            "label": pa.array([labels[r] for r in rows], pa.string()),
            "class": words_at(classes.names, true_T),
            "zero_shot": words_at(classes.names, before.class_T),
            "zero_shot_confidence": before.confidence_T.numpy(),
            "predicted": words_at(classes.names, after.class_T),
            "confidence": after.confidence_T.numpy(),
            "adapted": words_at(classes.names, adapted.class_T),
            "adapted_confidence": adapted.confidence_T.numpy(),
        }
    )


def with_unreadable(answered: pa.Table, table: FeatureTable, labels: list[str | None], classes: ClassSpace) -> pa.Table:
    """The answers and, between them in the order of the source, a row for every image without one; ``error`` tells why.

    Args:
        answered: Of all images that can be read, see `predictions_table`.
        table: All rows of the source.
        labels: Of all rows.
        classes: The classes.
    """
    bad = [row for row, error in enumerate(table.error_N) if error is not None]
    class_N = classes.indices_of([labels[row] for row in bad])
    columns = {
        "id": [table.id_N[row] for row in bad],
        "path": [table.path_N[row] for row in bad],
        "split": [table.split_N[row] for row in bad],
        "label": [labels[row] for row in bad],
        "class": [classes.names[c] if c >= 0 else None for c in class_N.tolist()],
    }
    nulls = {name: [None] * len(bad) for name in answered.column_names if name not in columns}
    unanswered = pa.table({name: (columns | nulls)[name] for name in answered.column_names}, answered.schema)
    whole = pa.concat_tables([answered, unanswered])
    errors = [None] * answered.num_rows + [table.error_N[row] for row in bad]
    whole = whole.append_column("error", pa.array(errors, pa.string()))
    order = np.argsort([*(row for row in range(len(table.id_N)) if table.error_N[row] is None), *bad], kind="stable")
    return whole.take(pa.array(order))


def pseudo_labels_table(history: list[PseudoLabels], id_N: list[str], names: tuple[str, ...]) -> pa.Table:
    """``pseudo_labels.parquet``: what each round gave to which image (ids of the training images in `id_N`)."""
    types = {
        "round": pa.int32(),
        "id": pa.string(),
        "classes": pa.list_(pa.string()),
        "weights": pa.list_(pa.float32()),
    }
    ids, class_names = pa.array(id_N, pa.string()), pa.array(names, pa.string())
    tables = [pa.schema(types.items()).empty_table()]
    for round_, labels in enumerate(history, start=1):
        target_MC = sparse(labels.target_MC)
        start_M = pa.array(target_MC.indptr.astype(np.int32))
        columns = {
            "round": pa.array(np.full(target_MC.shape[0], round_, np.int32)),
            "id": ids.take(pa.array(labels.index_M.numpy())),
            "classes": pa.ListArray.from_arrays(start_M, class_names.take(pa.array(target_MC.indices))),
            "weights": pa.ListArray.from_arrays(start_M, pa.array(target_MC.data)),
        }
        tables.append(pa.table(columns, tables[0].schema))
    return pa.concat_tables(tables)


def round_metrics(history: list[PseudoLabels], class_N: Tensor, unlabelled_U: Tensor) -> list[dict[str, Any]]:
    """Number and accuracy of the pseudo-labels of each round; accuracies are null without labels.

    Where several classifiers gave them together, ``classifiers`` tells how many of all unlabelled images each
    has right.
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
                "unplaced": labels.waiting,
                "without_candidates": labels.dropped,
            }
        )
        if labels.guesses:
            right = {name: guess_U[known_U] == true_U for name, guess_U in labels.guesses.items()}
            rounds[-1]["classifiers"] = {name: _share(right_U) for name, right_U in right.items()}
    return rounds


def add_scores(rounds: list[dict[str, Any]], lines: Sequence[Mapping[str, Any]]) -> None:
    """Puts the last label-free scores that the log has of each round beside its pseudo-labels."""
    found = {int(line["round"]): line["scores"] for line in lines if "scores" in line}
    for entry in rounds:
        entry["scores"] = found.get(entry["round"])


def evaluation_metrics(
    before: Accuracies, after: Accuracies, names: tuple[str, ...], *, images: int, transductive: bool
) -> dict[str, Any]:
    """The ``evaluation`` group of metrics.json: per class before and after."""
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
        "per_class": per_class,
    }


def confusion_table(confusion_CC: Tensor, names: Sequence[str]) -> pa.Table:
    """The cells of a confusion matrix that are not 0: ``truth``, ``predicted``, ``count``, row by row.

    A thousand classes have a million cells, of which the images of a test set fill a few thousand.
    """
    truth_K, predicted_K = (index.tolist() for index in confusion_CC.nonzero(as_tuple=True))
    columns = {
        "truth": pa.array([names[c] for c in truth_K], pa.string()),
        "predicted": pa.array([names[c] for c in predicted_K], pa.string()),
        "count": pa.array(confusion_CC[truth_K, predicted_K].tolist(), pa.int64()),
    }
    return pa.table(columns)


def compare_predictions(
    before: Predictions,
    after: Predictions,
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
    return measured | {"workers": settings.most_workers, "capped": capped}


def _share(right_M: Tensor) -> float | None:
    """Percent; None of nothing."""
    return 100.0 * float(right_M.double().mean()) if len(right_M) else None
