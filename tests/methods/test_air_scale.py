"""AiR's image judge beside the text judge where cosines are those of a CLIP, with few and with a thousand classes."""

from functools import cache

import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.synthetic_images import SyntheticImages
from raydapt.methods.air.part import AirPart
from raydapt.methods.air.settings import AirSettings
from raydapt.methods.contract import TrainingImages
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks
from tests.clip_like import ClipLike, clip_like


@cache
def drawn_set(n_classes, scale):
    per_class = 60 if n_classes == 10 else 2
    kind = ClipLike(n_classes=n_classes, per_class=per_class, zero_shot=0.6, width=64, scale=scale)
    return clip_like(kind, seed=3)


def judged(n_classes, scale, **settings):
    """How often the images win where both judges disagree, in percent; half of each class stands for made images."""
    drawn = drawn_set(n_classes, scale)
    made_N = torch.arange(len(drawn.label_N)) % 2 == 0
    feature_ND, class_N = drawn.feature_ND, drawn.label_N
    made_MD = F.normalize(feature_ND[made_N] + 0.3 * feature_ND.roll(1, dims=1)[made_N], dim=1)
    synthetic = SyntheticImages(feature_MD=made_MD, class_M=class_N[made_N], pixels=None)
    images = TrainingImages(
        feature_ND=feature_ND[~made_N],
        n_classes=n_classes,
        labelled_L=torch.empty(0, dtype=torch.int64),
        label_L=torch.empty(0, dtype=torch.int64),
        unlabelled_U=torch.arange(int((~made_N).sum())),
        candidate_classes=torch.arange(n_classes),
    )
    text_UC = (scale * images.feature_ND @ drawn.text_CD.T).softmax(dim=1).numpy()
    part = AirPart(AirSettings(**settings), synthetic, drawn.text_CD, scale)
    _, guesses = part.judge(1, ProbabilityBlocks.of(text_UC), images, images.feature_ND.__getitem__, None)
    contested_U = guesses["text"] != guesses["images"]
    won_U = guesses["both"] == guesses["images"]
    return 100 * float(won_U[contested_U].double().mean())


@pytest.mark.parametrize("scale", [16.0, 100.0])
@pytest.mark.parametrize("n_classes", [10, 1000])
def test_by_default_neither_judge_wins_every_disagreement_and_lambda_decides(n_classes, scale):
    less, equal, more = (judged(n_classes, scale, fusion_weight=weight) for weight in (0.25, 1.0, 4.0))
    assert less < equal < more
    assert less < 35
    assert 25 < equal < 75
    assert more > 65
