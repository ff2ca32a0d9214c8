"""Images of none of the names in a run: who is kept out, what is answered, what is told, and how good that is.

Legend: N training images, A all images, T images to predict, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score
from torch import Tensor

from raydapt.artefacts.features import FeatureTable
from raydapt.artefacts.rows import Features
from raydapt.data.splits import LabelSplit
from raydapt.methods.open_set import LEAST_IMAGES, NONE, OpenSetRule, rule_of
from raydapt.models.frozen import load_frozen
from raydapt.run.known_labels import KnownLabels
from raydapt.run.plan import Plan
from raydapt.settings.groups import DataSettings
from raydapt.store.run_record import Run

FILE = "open_set.safetensors"
"""The rule that a run has fitted, for images to come."""


@dataclass(frozen=True, kw_only=True)
class OpenSet:
    """The rule of a run over the images of a source."""

    data: DataSettings
    rule: OpenSetRule | None
    """None where there were too few images to fit it on, and for runs of earlier releases."""
    feature_AD: Features
    text_CD: Tensor

    @property
    def rejects(self) -> bool:
        """Whether images are kept out, and answered "none of these"."""
        return self.rule is not None and self.data.rejects

    def none_probability(self, row_T: Tensor) -> Tensor | None:
        """float32 [T]; None without a rule."""
        return None if self.rule is None else self.rule.none_probability(self.feature_AD, self.text_CD, row_T)

    def rejected(self, row_T: Tensor) -> Tensor:
        """Which of the images are answered "none of these", bool [T]."""
        return self._rejected(self.none_probability(row_T) if self.rejects else None, len(row_T))

    def _rejected(self, probability_T: Tensor | None, count: int) -> Tensor:
        if probability_T is None or not self.rejects:
            return torch.zeros(count, dtype=torch.bool)
        return probability_T > 0.5

    def with_columns(self, predictions: pa.Table, row_T: Tensor) -> pa.Table:
        """``predictions.parquet`` with ``none_of_these``, a probability, and ``predicted_or_none``, a class or NONE.

        ``predicted`` stays a class for every image.
        """
        probability_T = self.none_probability(row_T)
        column = pa.nulls(len(row_T), pa.float32()) if probability_T is None else pa.array(probability_T.numpy())
        rejected_T = self._rejected(probability_T, len(row_T)).numpy()
        answer = pc.if_else(pa.array(rejected_T), NONE, predictions["predicted"])
        return predictions.append_column("none_of_these", column).append_column("predicted_or_none", answer)

    def kept(self, row_N: Tensor, split: LabelSplit) -> tuple[Tensor, LabelSplit]:
        """The training images without the rejected unlabelled ones, and their split."""
        out_N = self.rejected(row_N)
        out_N[torch.from_numpy(split.labelled_L)] = False
        if not bool(out_N.any()):
            return row_N, split
        place_N = (~out_N).cumsum(dim=0).numpy() - 1
        kept_U = split.unlabelled_U[~out_N.numpy()[split.unlabelled_U]]
        return row_N[~out_N], LabelSplit(
            labelled_L=place_N[split.labelled_L],
            unlabelled_U=place_N[kept_U],
            candidate_classes=split.candidate_classes,
            seen=split.seen,
            unseen=split.unseen,
        )

    def notes(self, images: int, kept: int) -> list[str]:
        """What a person must know, before any figure.

        Args:
            images: That are adapted to.
            kept: Of them, those that are learned from.
        """
        setting = f"data.reject={str(self.data.reject).lower()}"
        if self.rejects:
            return [
                f"{images - kept:,} of {images:,} images were kept out of what is learned from, since they seem to "
                f"belong to none of the names ({setting}); such images are answered {NONE!r}."
            ]
        if self.rule is None:
            least = f"{setting} has no effect: fewer than {LEAST_IMAGES} images tell nothing."
            return [least] if self.data.rejects else []
        sentence = self.rule.groups.sentence() if self.data.reject == "auto" else None
        return [sentence] if sentence else []

    def metrics(self, predictions: pa.Table, known: KnownLabels, row_T: Tensor, *, left_out: int) -> dict[str, Any]:
        """The group ``open_set`` of metrics.json.

        Args:
            predictions: With the columns of `with_columns`.
            known: The labels, for measuring.
            row_T: The images of `predictions`.
            left_out: Images that were kept out of what is learned from.
        """
        groups = None if self.rule is None else self.rule.groups
        told = {name: getattr(groups, name, None) for name in ("share", "separation", "suspected", "clear")}
        return told | {"rejects": self.rejects, "left_out": left_out} | measured(predictions, known, row_T)


def measured(predictions: pa.Table, known: KnownLabels, row_T: Tensor) -> dict[str, Any]:
    """How well images of ``data.other_labels`` are told from those of the classes; nulls without either.

    ``auroc`` of ``none_of_these`` (0 to 1); the share of the others and of the classes' images that are answered "none
    of these", and of both together that are answered rightly, in percent.
    """
    other_T, class_T = known.other_N[row_T].numpy(), known.class_N[row_T].numpy()
    score, counted_T = predictions["none_of_these"], other_T | (class_T >= 0)
    found: dict[str, Any] = {"other_images": int(other_T.sum()), "auroc": None}
    found |= dict.fromkeys(("others_rejected", "classes_rejected", "top1_with_none"))
    if score.null_count or not other_T.any() or not (class_T >= 0).any():
        return found
    answer_T = np.asarray(predictions["predicted_or_none"].to_pylist(), dtype=object)
    truth_T = np.where(other_T, NONE, np.asarray(predictions["class"].to_pylist(), dtype=object))
    none_T = answer_T == NONE
    return found | {
        "auroc": float(roc_auc_score(other_T[counted_T], score.to_numpy()[counted_T])),
        "others_rejected": 100.0 * float(none_T[other_T].mean()),
        "classes_rejected": 100.0 * float(none_T[class_T >= 0].mean()),
        "top1_with_none": 100.0 * float((answer_T == truth_T)[counted_T].mean()),
    }


def find_open_set(plan: Plan, table: FeatureTable, row_N: Tensor, record: Run) -> OpenSet:
    """Fits the rule on the images that are adapted to, without a label, and keeps it in the run's folder."""
    text_CD = _texts(plan)
    rule = rule_of(plan.config.data, table.feature_ND, text_CD, row_N)
    if rule is not None:
        record.write_bytes(FILE, save({name: tensor.contiguous() for name, tensor in rule.state().items()}))
    return OpenSet(data=plan.config.data, rule=rule, feature_AD=table.feature_ND, text_CD=text_CD)


def open_set_of_run(run: Run, plan: Plan, table: FeatureTable) -> OpenSet:
    """The rule of a finished run over the images of a plan, which says whether they are rejected."""
    state: Mapping[str, Tensor] | None = load(run.read_bytes(FILE)) if run.exists(FILE) else None
    rule = None if state is None else OpenSetRule.of_state(state)
    return OpenSet(data=plan.config.data, rule=rule, feature_AD=table.feature_ND, text_CD=_texts(plan))


def _texts(plan: Plan) -> Tensor:
    clip = load_frozen(plan.config.data, plan.config.model)
    return clip.class_embeddings(plan.classes.names, plan.classes.templates[:1]).detach().float().cpu()
