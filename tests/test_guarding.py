"""The guard of a run has zero-shot read what the adapted classifier reads."""

from dataclasses import asdict

import pytest
import torch

from raydapt.methods.contract import Method
from raydapt.methods.guard import evidence, judge
from raydapt.methods.predictions import Classifier
from raydapt.run.guarding import Classifiers
from tests.clip_like import ClipLike, clip_like, second_view

CPU = torch.device("cpu")


class Linear(Method):
    """Compares what it reads with class embeddings: the whole image, or with `views` what stands behind it."""

    def __init__(self, class_CD, *, scale, views=False):
        super().__init__()
        self.class_CD, self.scale, self.views = class_CD, scale, views
        self.input_kind = "crops" if views else "features"

    def logits(self, image_B):
        read_BD = image_B if self.read_features(image_B) is None else self.read_features(image_B)
        return self.scale * read_BD @ self.class_CD.T

    def read_features(self, image_B):
        return image_B[:, 1] if self.views else None

    def forward(self, batches):
        raise NotImplementedError

    def begin_round(self, round_, over_unlabelled):
        return []


def test_a_classifier_of_other_views_is_compared_with_zero_shot_of_the_same_and_answers_together_with_it():
    drawn = clip_like(ClipLike(n_classes=8, per_class=40, zero_shot=0.85, width=64), 0)
    view_ND = second_view(drawn.label_N, between=0.3, seed=1, width=64)
    mean_CD = torch.stack([view_ND[drawn.label_N == c].mean(dim=0) for c in range(8)])
    both = {
        views: Classifiers(
            zero_shot=Classifier(method=Linear(drawn.text_CD, scale=30.0), image_N=drawn.feature_ND),
            adapted=Classifier(
                method=Linear(mean_CD if views else drawn.text_CD, scale=30.0, views=views),
                image_N=torch.stack([drawn.feature_ND, view_ND], dim=1) if views else drawn.feature_ND,
            ),
            device=CPU,
            batch_size=96,
        )
        for views in (True, False)
    }
    row_U = torch.arange(320)
    zero_NC = (30 * drawn.feature_ND @ drawn.text_CD.T).double().softmax(dim=1)
    adapted_NC = (30 * view_ND @ mean_CD.T).double().softmax(dim=1)
    # It is right far more often, and yet answers neighbours by whole images less alike than zero-shot does.
    right = [float((one.argmax(dim=1) == drawn.label_N).double().mean()) for one in (zero_NC, adapted_NC)]
    assert right[1] > right[0] + 0.15
    assert judge(zero_NC, adapted_NC, drawn.feature_ND).verdict == "zero-shot"
    found = both[True].judged(row_U, drawn.feature_ND)
    assert found.verdict == "mean of both"
    assert "by zero-shot from the same crops" in found.sentence
    views_NC = (30 * view_ND @ drawn.text_CD.T).softmax(dim=1)
    told = evidence(zero_NC, adapted_NC, drawn.feature_ND, views_NC=views_NC)
    assert asdict(found.evidence) == pytest.approx(asdict(told), abs=1e-6)
    unchanged = both[False].judged(row_U, drawn.feature_ND)
    assert asdict(unchanged.evidence) == pytest.approx(asdict(evidence(zero_NC, zero_NC, drawn.feature_ND)), abs=1e-6)
