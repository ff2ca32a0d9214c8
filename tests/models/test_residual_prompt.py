import torch
from torch.nn import functional as F

from raydapt.models.clip import load_clip
from raydapt.models.prompts import PromptedClip
from raydapt.models.residual_prompt import ClassResidual, ResidualPrompt
from raydapt.settings.groups import ModelSettings
from tests.models.given import given

NAMES, TEMPLATES = ["cat", "dog", "cow"], ["a photo of a {}.", "a {}"]


def test_a_residual_is_added_and_the_sum_normalised() -> None:
    clip = given(NAMES, width=5)
    class_CD = clip.class_embeddings(NAMES, TEMPLATES)
    prompt = ResidualPrompt(clip, class_CD, scale=0.3)
    with torch.no_grad():
        prompt.residual.residual_CD.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)))
    residual_CD = prompt.residual.residual_CD.tolist()
    feature_BD = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(2)), dim=1)
    logits_BC = prompt(feature_BD).detach()
    for b in range(4):
        for c in range(3):
            moved = [float(class_CD[c, d]) + 0.3 * residual_CD[c][d] for d in range(5)]
            length = sum(value * value for value in moved) ** 0.5
            cosine = sum(float(feature_BD[b, d]) * moved[d] / length for d in range(5))
            assert abs(float(logits_BC[b, c]) - 100 * cosine) < 1e-3


def test_it_starts_as_zero_shot_and_starts_anew() -> None:
    clip = given(NAMES, width=5)
    class_CD = clip.class_embeddings(NAMES, TEMPLATES)
    prompt = ResidualPrompt(clip, class_CD)
    torch.testing.assert_close(prompt.class_embeddings(), class_CD)
    optimizer = torch.optim.SGD(prompt.parameters(), lr=0.1)
    F.cross_entropy(prompt(class_CD), torch.tensor([1, 2, 0])).backward()
    optimizer.step()
    assert (prompt.class_embeddings() - class_CD).abs().max() > 1e-3
    prompt.reset(3)
    torch.testing.assert_close(prompt.class_embeddings(), class_CD)


def test_the_residual_alone_is_learned_and_kept() -> None:
    clip = given(NAMES, width=5)
    prompt = ResidualPrompt(clip, clip.class_embeddings(NAMES, TEMPLATES))
    assert [name for name, _ in prompt.named_parameters()] == ["residual.residual_CD"]
    assert list(prompt.state_dict()) == ["residual.residual_CD"]


def test_it_stands_in_for_a_prompted_clip_of_a_real_model() -> None:
    clip = load_clip("mini")
    class_CD = clip.class_embeddings(NAMES, TEMPLATES[:1])
    prompt = ResidualPrompt(clip, class_CD)
    side = clip.image_spec.size_px
    pixel_B3SS = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    feature_BD = clip.encode_image(pixel_B3SS)
    expected_BC = clip.logit_scale * feature_BD @ class_CD.T
    torch.testing.assert_close(prompt(pixel_B3SS), expected_BC)
    torch.testing.assert_close(prompt(feature_BD), expected_BC)
    used = ("reset", "image_features", "class_embeddings", "forward", "clip")
    assert all(hasattr(PromptedClip, name) and hasattr(ResidualPrompt, name) for name in used)
    own = PromptedClip(clip, NAMES, TEMPLATES, ModelSettings(), seed=0)
    assert all(hasattr(own, name) and hasattr(prompt, name) for name in ("uses_pixels", "text", "visual", "joint"))


def test_gradients_are_those_of_autograd_through_the_plain_formula() -> None:
    clip = given(NAMES, width=5)
    class_CD = clip.class_embeddings(NAMES, TEMPLATES)
    residual = ClassResidual(clip, class_CD, scale=0.5)
    other_CD = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    weight_CD = torch.arange(15.0).reshape(3, 5)
    (residual() * weight_CD).sum().backward()
    moved_CD = class_CD.double() + 0.5 * other_CD
    (moved_CD / moved_CD.square().sum(1, keepdim=True).sqrt() * weight_CD).sum().backward()
    torch.testing.assert_close(residual.residual_CD.grad.double(), other_CD.grad, atol=1e-5, rtol=1e-5)
