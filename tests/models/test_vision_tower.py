import open_clip
import pytest
import torch
from torch.nn import functional as F

from raydapt.errors import UserError
from raydapt.models.vision_tower import extra_tokens, vision_width
from tests.models.tiny import pixels, tiny_clip


def test_native_tower_equals_a_forward_pass_written_out():
    clip = tiny_clip()
    visual, pixel_B3SS = clip.model.visual, pixels(3)
    prompt_LD = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    patch_BND = visual.conv1(clip.normalise_pixels(pixel_B3SS)).flatten(2).transpose(1, 2)
    class_B1D = visual.class_embedding.expand(3, 1, -1)
    token_BND = torch.cat([class_B1D, patch_BND], dim=1) + visual.positional_embedding
    token_BND = torch.cat([token_BND[:, :1], prompt_LD.expand(3, -1, -1), token_BND[:, 1:]], dim=1)
    hidden_BND = visual.transformer(visual.ln_pre(token_BND))
    expected_BD = F.normalize(visual.ln_post(hidden_BND[:, 0]) @ visual.proj, dim=-1)
    with extra_tokens(visual, prompt_LD):
        actual_BD = clip.encode_image(pixel_B3SS)
    torch.testing.assert_close(actual_BD, expected_BD, rtol=0, atol=1e-5)


def test_timm_tower_equals_a_forward_pass_written_out():
    clip = tiny_clip("timm")
    trunk, pixel_B3SS = clip.model.visual.trunk, pixels(3)
    prompt_LD = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    token_BND = trunk._pos_embed(trunk.patch_embed(clip.normalise_pixels(pixel_B3SS)))
    token_BND = torch.cat([token_BND[:, :1], prompt_LD.expand(3, -1, -1), token_BND[:, 1:]], dim=1)
    for block in trunk.blocks:
        token_BND = block(token_BND)
    expected_BD = F.normalize(clip.model.visual.head(trunk.norm(token_BND)[:, 0]), dim=-1)
    with extra_tokens(clip.model.visual, prompt_LD):
        actual_BD = clip.encode_image(pixel_B3SS)
    torch.testing.assert_close(actual_BD, expected_BD, rtol=0, atol=1e-5)
    assert vision_width(clip.model.visual) == 32


def test_pooling_does_not_see_the_extra_tokens():
    clip = tiny_clip("bidirectional")  # its image tower averages the patches
    shapes = []
    clip.model.visual.ln_post.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    with extra_tokens(clip.model.visual, torch.randn(5, 32)):
        clip.encode_image(pixels(2))
    assert shapes == [(2, 17, 32)]  # class token and 16 patches


@pytest.mark.parametrize("kind", ["clip", "timm"])
def test_the_tower_is_as_before_afterwards_even_after_an_error(kind):
    clip = tiny_clip(kind)
    before_BD = clip.encode_image(pixels(2))
    with extra_tokens(clip.model.visual, torch.randn(3, 32)):
        assert not torch.equal(clip.encode_image(pixels(2)), before_BD)
    with pytest.raises(ZeroDivisionError), extra_tokens(clip.model.visual, torch.randn(3, 32)):
        _ = 1 / 0
    assert torch.equal(clip.encode_image(pixels(2)), before_BD)


def test_another_architecture_is_refused():
    resnet = open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=2, image_size=32, width=8)
    with pytest.raises(UserError, match=r"ModifiedResNet: choose model\.prompt=text"):
        vision_width(resnet)
