import pytest
import torch
from torch.nn import functional as F

from raydapt.models.feature_views import FeatureViews
from raydapt.models.students import Student


def features(n: int, width: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(0)), dim=1)


def test_views_miss_their_share_and_keep_their_length() -> None:
    torch.manual_seed(0)
    views, feature_BD = FeatureViews(missing_share=0.4), features(200, 64)
    plain_BD = views.plain(feature_BD)
    torch.testing.assert_close(plain_BD, 8 * feature_BD)
    for view_BD, share in ((views.weak(feature_BD), 0.1), (views.strong(feature_BD), 0.4)):
        missing_BD = view_BD == 0
        assert float(missing_BD.float().mean()) == pytest.approx(share, abs=0.02)
        for view_D, plain_D, missing_D in zip(view_BD, plain_BD, missing_BD, strict=True):
            kept = [float(value) for value, gone in zip(plain_D, missing_D, strict=True) if not gone]
            scale = 8 / sum(value * value for value in kept) ** 0.5
            torch.testing.assert_close(view_D[~missing_D], scale * torch.tensor(kept), atol=1e-4, rtol=1e-4)
    assert not torch.equal(views.strong(feature_BD), views.strong(feature_BD))


def test_without_a_share_nothing_is_missing() -> None:
    views, feature_BD = FeatureViews(missing_share=0.0), features(3, 16)
    torch.testing.assert_close(views.strong(feature_BD), views.plain(feature_BD))


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_students_of_features(name: str) -> None:
    student, feature_BD = Student(name, 5, width=16), features(8, 16)
    logits_BC, projected_BP = student(feature_BD)
    assert logits_BC.shape == (8, 5)
    torch.testing.assert_close(projected_BP.norm(dim=1), torch.ones(8))
    student.eval()
    if name == "linear":
        norm, head = student.backbone, student.head
        by_hand_BD = (feature_BD - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        expected_BC = (norm.weight * by_hand_BD + norm.bias) @ head.weight.T + head.bias
        torch.testing.assert_close(student.classify(feature_BD), expected_BC, atol=1e-5, rtol=1e-5)
