import torch

from raydapt.methods.ensemble.method import Ensemble
from raydapt.methods.zero_shot.method import ZeroShot
from tests.methods.cases import CLASSES, NAMES, tiny_clip
from tests.models.tiny import pixels


def test_zero_shot_logits_are_scaled_cosines_of_features_or_pixels():
    clip = tiny_clip()
    class_CD = clip.class_embeddings(NAMES, CLASSES.templates[:1])
    method = ZeroShot(clip, class_CD)
    feature_BD = clip.encode_image(pixels(3)).detach()
    logits_BC = method.logits(feature_BD)
    expected = [[clip.logit_scale * float(f @ c) for c in class_CD] for f in feature_BD]
    torch.testing.assert_close(logits_BC, torch.tensor(expected), rtol=0, atol=1e-4)
    torch.testing.assert_close(method.logits(pixels(3)), logits_BC)


def test_nothing_is_learned():
    method = ZeroShot(tiny_clip(), torch.eye(4, 24))
    assert method.rounds == 0
    assert method.input_kind == "features"
    assert list(method.parameters()) == []
    assert list(method.state_dict()) == []
    assert method.begin_round(1, None) == []
    assert float(method({})) == 0


def test_ensemble_averages_all_templates():
    clip = tiny_clip()
    expected_CD = torch.stack([clip.class_embeddings([name], CLASSES.templates)[0] for name in NAMES])
    torch.testing.assert_close(Ensemble(clip, NAMES, CLASSES.templates).class_CD, expected_CD)
    one_template = Ensemble(clip, NAMES, CLASSES.templates[:1])
    assert not torch.allclose(one_template.class_CD, expected_CD)
