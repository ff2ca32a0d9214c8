"""The guard of a run: which answer it gives, by evidence that reads no label.

Legend: S sampled unlabelled training images, T images to predict, C classes.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from raydapt.artefacts.inputs import images_of
from raydapt.artefacts.rows import Features
from raydapt.methods.contract import Method
from raydapt.methods.even_sample import even_sample
from raydapt.methods.guard import SAMPLE, Evidence, Guarded, Verdict, judge
from raydapt.methods.predictions import Classifier, Predictions, predict_mean
from raydapt.methods.spec import FinishedRun
from raydapt.settings.config import Config
from raydapt.store.run_record import Run


@dataclass(frozen=True, kw_only=True)
class Classifiers:
    """The two that a run holds."""

    zero_shot: Classifier
    adapted: Classifier
    device: torch.device
    batch_size: int

    def answer(self, verdict: Verdict, row_T: Tensor) -> Predictions:
        """The predictions that a verdict keeps."""
        kept = {
            "adapted": [self.adapted],
            "mean of both": [self.zero_shot, self.adapted],
            "zero-shot": [self.zero_shot],
        }[verdict]
        return predict_mean(kept, row_T, batch_size=self.batch_size, device=self.device)

    def judged(self, row_U: Tensor, feature_ND: Features) -> Guarded:
        """The verdict on the adapted classifier by an even sample of the unlabelled images."""
        row_S = even_sample(row_U, SAMPLE)
        zero_SC, adapted_SC = (self._probabilities(one, row_S) for one in (self.zero_shot, self.adapted))
        return judge(zero_SC, adapted_SC, feature_ND[row_S], views_NC=self._of_views(row_S))

    @torch.no_grad()
    def _of_views(self, row_S: Tensor) -> Tensor | None:
        """Zero-shot's probabilities [S, C] from what the adapted classifier reads; None where both read the same."""
        if self.adapted.method.input_kind != "crops":
            return None  # before an image is read, and decoded, to be told so
        parts = []
        for row_B in torch.split(row_S, self.batch_size):
            read_BD = self.adapted.method.eval().read_features(self.adapted.image_N[row_B].to(self.device))
            if read_BD is None:
                return None
            parts.append(self.zero_shot.method.eval().logits(read_BD.float()).softmax(-1).cpu())
        return torch.cat(parts)

    def _probabilities(self, classifier: Classifier, row_S: Tensor) -> Tensor:
        chunks = [classifier.probabilities(row_B, self.device).float() for row_B in torch.split(row_S, self.batch_size)]
        return torch.cat(chunks)


def classifiers_of(finished: FinishedRun, zero_shot: Method) -> Classifiers:
    """Zero-shot and what a finished run has learned, over the run's own images."""
    images = images_of(finished.method.input_kind, finished.table, finished.artefacts, finished.config.train.cache_gb)
    return Classifiers(
        zero_shot=Classifier(method=zero_shot, image_N=finished.table.feature_ND),
        adapted=Classifier(method=finished.method, image_N=images),
        device=finished.device,
        batch_size=finished.config.train.predict_batch_size,
    )


def verdict_of(config: Config, guarded: Guarded | None, *, earlier_round: bool) -> Verdict:
    """What a run answers with: the guard's verdict, or the mean of both for more caution.

    So where ``predict.with_frozen`` says it, and where an earlier round than the last is kept: evidence against what
    came of that round is evidence against it, too.
    """
    verdict: Verdict = "adapted" if guarded is None else guarded.verdict
    return "mean of both" if verdict == "adapted" and (config.predict.with_frozen is True or earlier_round) else verdict


def stored_verdict(run: Run) -> Verdict:
    """The verdict of a finished run; runs of earlier releases have none, and answer as adapted."""
    return stored_judgement(run)[0]


def stored_judgement(run: Run) -> tuple[Verdict, Evidence | None]:
    """That verdict, and what the guard saw; None where there was no guard, or not yet all of this evidence."""
    metrics = run.read_json("metrics.json")
    verdict: Verdict = metrics.get("answer", "adapted")
    found, names = metrics.get("guard") or {}, [field.name for field in fields(Evidence)]
    if not all(name in found for name in names):
        return verdict, None
    return verdict, Evidence(**{name: float(found[name]) for name in names})
