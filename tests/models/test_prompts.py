import pytest
import torch
from torch.nn import functional as F

from raydapt.errors import UserError
from raydapt.models.prompts import PromptedClip, TextPrompt, VisualPrompt
from raydapt.settings.groups import ModelSettings
from tests.models.tiny import CONTEXT_LENGTH, EMBED_DIM, pixels, tiny_clip

NAMES = ["cat", "annual crop land with a river", "sea / lake", "{} <b>", "fox 🦊", "a", "highway or road"]


def text_prompt(clip, names=NAMES, n_tokens=6, chunk=256, seed=0):
    return TextPrompt(clip, names, n_tokens=n_tokens, classes_per_chunk=chunk, seed=seed)


def prompted(clip, kind, seed=0, **settings):
    settings = ModelSettings(prompt=kind, text_prompt_tokens=4, visual_prompt_tokens=3, **settings)
    return PromptedClip(clip, NAMES, ["a photo of a {}", "{}"], settings, seed=seed)


@pytest.mark.parametrize("kind", ["clip", "custom", "bidirectional"])
def test_text_prompt_equals_placeholders_replaced_in_the_full_length_text(kind):
    clip = tiny_clip(kind)
    prompt = text_prompt(clip)
    parts = getattr(clip.model, "text", clip.model)
    expected = []
    for name in NAMES:  # as CoOp does it: six placeholder words, their embeddings overwritten, nothing cropped
        token_L = clip.tokenizer(["X X X X X X " + name])
        embedding_1LD = parts.token_embedding(token_L).clone()
        embedding_1LD[0, 1:7] = prompt.context_LD
        hidden_1LD = parts.transformer(embedding_1LD + parts.positional_embedding, attn_mask=parts.attn_mask)
        end = CONTEXT_LENGTH - 1 if kind == "bidirectional" else int(token_L.argmax())
        hidden_D = parts.ln_final(hidden_1LD)[0, end]
        projection = parts.text_projection
        feature_D = projection(hidden_D) if isinstance(projection, torch.nn.Module) else hidden_D @ projection
        expected.append(F.normalize(feature_D, dim=0))
    torch.testing.assert_close(prompt(), torch.stack(expected), rtol=0, atol=1e-5)


def test_gradient_reaches_the_prompt_alone():
    clip = tiny_clip()
    prompt = text_prompt(clip)
    prompt()[:, 0].sum().backward()
    assert prompt.context_LD.grad.abs().sum() > 0
    assert [name for name, _ in prompt.named_parameters()] == ["context_LD"]
    assert list(prompt.state_dict()) == ["context_LD"]
    assert all(parameter.grad is None for parameter in clip.parameters())


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_change_neither_loss_nor_gradient(chunk):
    clip = tiny_clip()
    whole, chunked = text_prompt(clip), text_prompt(clip, chunk=chunk)
    weight_CD = torch.randn(len(NAMES), EMBED_DIM, generator=torch.Generator().manual_seed(0))
    losses = [(prompt() * weight_CD).sum() for prompt in (whole, chunked)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(whole.context_LD.grad, chunked.context_LD.grad, rtol=1e-4, atol=1e-4)


def saved_bytes(prompt):
    """Bytes of what the forward pass keeps for the backward pass, frozen buffers apart."""
    frozen = {buffer.untyped_storage().data_ptr() for buffer in prompt.buffers()}
    frozen |= {parameter.untyped_storage().data_ptr() for parameter in prompt.clip.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prompt()
    return sum(kept.values())


def test_memory_of_a_step_is_that_of_one_chunk_however_many_classes():
    clip = tiny_clip()
    names = [f"thing number {i:03}" for i in range(800)]
    one_chunk = saved_bytes(text_prompt(clip, names[:40], chunk=40))  # what recomputing a chunk holds at a time
    whole = saved_bytes(text_prompt(clip, names, chunk=800))
    half, full = (saved_bytes(text_prompt(clip, names[:n], chunk=40)) for n in (400, 800))
    assert whole > 10 * one_chunk
    assert half < one_chunk / 10
    assert full == half  # beside the class embeddings themselves, which the caller holds


def test_the_same_seed_gives_the_same_prompt():
    clip = tiny_clip()
    first, second = text_prompt(clip, seed=5), text_prompt(clip, seed=5)
    assert torch.equal(first.context_LD, second.context_LD)
    second.reset(6)
    assert not torch.equal(first.context_LD, second.context_LD)
    second.reset(5)
    assert torch.equal(first.context_LD, second.context_LD)
    large = text_prompt(clip, n_tokens=20, names=["a", "b"])
    assert float(large.context_LD.detach().std()) == pytest.approx(0.02, rel=0.15)


def test_a_name_too_long_for_the_prompt_is_named():
    with pytest.raises(UserError, match="'fox fox"):
        text_prompt(tiny_clip(), ["cat", "fox " * 35])


@pytest.mark.parametrize("kind", ["clip", "timm"])
def test_no_visual_tokens_is_the_plain_tower_bit_for_bit(kind):
    clip = tiny_clip(kind)
    assert torch.equal(VisualPrompt(clip, n_tokens=0, seed=0)(pixels(3)), clip.encode_image(pixels(3)))


def test_visual_prompt_learns_itself_alone():
    clip = tiny_clip()
    prompt = VisualPrompt(clip, n_tokens=4, seed=0)
    feature_BD = prompt(pixels(3))
    torch.testing.assert_close(feature_BD.norm(dim=1), torch.ones(3))
    feature_BD[:, 0].sum().backward()
    assert prompt.prompt_LD.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert float(VisualPrompt(clip, n_tokens=500, seed=0).prompt_LD.detach().std()) == pytest.approx(32**-0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["text", "visual", "both"])
def test_logits_are_scaled_cosines_and_state_is_the_prompts(kind):
    clip = tiny_clip()
    model = prompted(clip, kind)
    image_B = pixels(3)
    logits_BC = model(image_B)
    if kind == "text":
        feature_BD, class_CD = clip.encode_image(image_B), model.text()
        torch.testing.assert_close(model(feature_BD), logits_BC)
    elif kind == "visual":
        feature_BD, class_CD = model.visual(image_B), clip.class_embeddings(NAMES, ["a photo of a {}"])
    else:
        context_LD, prompt_LD = model.joint(model.text.context_LD, model.visual.prompt_LD)
        feature_BD, class_CD = model.visual(image_B, prompt_LD), model.text(context_LD)
    expected = [[clip.logit_scale * float((f @ c).detach()) for c in class_CD] for f in feature_BD]
    torch.testing.assert_close(logits_BC, torch.tensor(expected), rtol=0, atol=1e-4)
    torch.testing.assert_close(model.class_embeddings(), class_CD)
    assert model.uses_pixels == (kind != "text")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert all(not key.startswith("clip") for key in model.state_dict())


@pytest.mark.parametrize("kind", ["text", "visual", "both"])
def test_a_saved_prompt_gives_the_same_logits_in_a_new_model(kind):
    clip = tiny_clip()
    model, other = prompted(clip, kind, seed=1), prompted(clip, kind, seed=2)
    assert not torch.equal(model(pixels(2)), other(pixels(2)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(pixels(2)), other(pixels(2)))
    other.reset(2)
    model.reset(2)
    assert torch.equal(model(pixels(2)), other(pixels(2)))


def test_outside_training_classes_are_encoded_once_and_again_when_the_prompt_has_changed():
    clip = tiny_clip()
    model, feature_BD = prompted(clip, "text"), F.normalize(torch.randn(3, EMBED_DIM), dim=1)
    calls = []
    model.text.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        first_BC, second_BC = model(feature_BD), model(feature_BD)
        assert len(calls) == 1
        assert torch.equal(first_BC, second_BC)
        model.text.context_LD.add_(0.1)
        assert not torch.equal(model(feature_BD), first_BC)
    assert model(feature_BD).requires_grad
    assert len(calls) == 3


def test_lower_precision_leaves_the_logits_in_float32():
    clip = tiny_clip()
    model, feature_BD = prompted(clip, "text"), F.normalize(torch.randn(3, EMBED_DIM), dim=1)
    expected_BC = model(feature_BD)
    with torch.autocast("cpu", torch.bfloat16):
        actual_BC = model(feature_BD)
    assert actual_BC.dtype == torch.float32
    torch.testing.assert_close(actual_BC, expected_BC, rtol=0, atol=0.5)
