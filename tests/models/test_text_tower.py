import pytest
import torch

from raydapt.errors import UserError
from raydapt.models.clip import load_clip
from raydapt.models.prompts import TextPrompt
from raydapt.models.text_tower import class_tokens
from tests.models.tiny import CONTEXT_LENGTH, tiny_clip

TEXTS = ["a cat", "a photo of a very annual crop land, seen from far above, with <b>trees</b> / {} 🦊", "", "river"]


@pytest.mark.parametrize("kind", ["clip", "custom", "bidirectional", "class_token"])
def test_encoded_tokens_equal_encode_text_of_open_clip(kind):
    clip = tiny_clip(kind)
    tower = clip.text_tower
    token_TL = tower.tokenize(TEXTS)
    with torch.no_grad():
        expected_TD = clip.model.encode_text(token_TL)
        actual_TD = tower.encode_tokens(token_TL)
    assert tower.croppable == (kind in ("clip", "custom"))
    torch.testing.assert_close(actual_TD, expected_TD, rtol=0, atol=1e-5)


def test_cropping_feeds_the_tower_no_token_behind_the_longest_end():
    clip = tiny_clip()
    lengths = []
    clip.model.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    clip.text_tower.encode_tokens(clip.text_tower.tokenize(["cat", "a cat"]))
    assert lengths == [4]  # start, a, cat, end


def test_a_text_longer_than_the_context_is_cut_as_open_clip_cuts_it():
    clip = tiny_clip()
    token_TL = clip.text_tower.tokenize(["cat " * 100])
    assert token_TL.shape == (1, CONTEXT_LENGTH)
    assert clip.text_tower.end_positions(token_TL).tolist() == [CONTEXT_LENGTH - 1]


@pytest.mark.parametrize(("kind", "n_prefix"), [("clip", 1), ("clip", 7), ("custom", 5), ("bidirectional", 5)])
def test_a_shared_beginning_gives_what_whole_texts_give(kind, n_prefix):
    clip = tiny_clip(kind)
    tower = clip.text_tower
    generator = torch.Generator().manual_seed(1)
    n_texts, length = 5, 6
    prefix_PD = torch.randn(n_prefix, tower.width, generator=generator, requires_grad=True)
    suffix_TSD = torch.randn(n_texts, length, tower.width, generator=generator)
    end_T = torch.tensor([0, 5, 2, 3, 5])

    def naive(text):  # one text at a time, nothing behind its end, through the tower's own layers
        stop = int(end_T[text]) + 1 if tower.croppable else length
        hidden = torch.cat([prefix_PD, suffix_TSD[text, :stop]]).unsqueeze(0)
        parts = getattr(clip.model, "text", clip.model)
        mask = None if parts.attn_mask is None else parts.attn_mask[: hidden.shape[1], : hidden.shape[1]]
        hidden = parts.ln_final(parts.transformer(hidden, attn_mask=mask))[0, n_prefix + int(end_T[text])]
        projection = parts.text_projection
        return projection(hidden) if isinstance(projection, torch.nn.Module) else hidden @ projection

    expected_TD = torch.stack([naive(text) for text in range(n_texts)])
    actual_TD = tower.encode_continued(prefix_PD, suffix_TSD, end_T)
    torch.testing.assert_close(actual_TD, expected_TD, rtol=0, atol=1e-5)
    (expected_gradient,) = torch.autograd.grad(expected_TD.square().sum(), prefix_PD)
    (actual_gradient,) = torch.autograd.grad(actual_TD.square().sum(), prefix_PD)
    torch.testing.assert_close(actual_gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_a_name_without_room_behind_the_context_is_named():
    tower = tiny_clip().text_tower
    fits = "cat " * (CONTEXT_LENGTH - 4 - 2)
    class_tokens(tower, ["dog", fits], 4)
    with pytest.raises(UserError, match=r"'cat cat .*text_prompt_tokens=5 do not fit into the 40 tokens"):
        class_tokens(tower, ["dog", fits], 5)
    with pytest.raises(UserError, match="cat"):  # the tokenizer has cut it, it is too long all the same
        class_tokens(tower, ["dog", "cat " * 100], 1)


def test_a_name_without_room_in_a_padded_tower_is_named():
    tower = tiny_clip("bidirectional").text_tower
    class_tokens(tower, ["dog", "cat " * (CONTEXT_LENGTH - 6)], 4)
    with pytest.raises(UserError, match="do not fit"):
        class_tokens(tower, ["dog", "cat " * (CONTEXT_LENGTH - 5)], 4)


def test_a_tower_that_takes_no_embeddings_is_refused():
    with pytest.raises(UserError, match=r"model\.prompt=visual"):
        class_tokens(tiny_clip("class_token").text_tower, ["dog", "cat"], 4)


LONG = "very " * 90


@pytest.mark.parametrize("kind", ["clip", "custom", "bidirectional", "class_token"])
def test_a_prompt_that_would_be_cut_is_refused_and_one_that_fits_is_not(kind):
    clip = tiny_clip(kind)
    names = [LONG + "big cat", LONG + "big dog"]
    for given, templates in ((names, ["a {}."]), (["cat", "dog"], ["{}.", LONG + "{}"])):
        with pytest.raises(UserError, match="would be cut: shorten"):
            clip.class_embeddings(given, templates)
    tower = clip.text_tower
    texts = ["cat " * n_words for n_words in range(1, tower.context_length + 6)] + ["a" * 500, "é" * 40]
    whole_TL = tower._tokenizer(texts, context_length=600)
    wanted = [i for i, token_L in enumerate(whole_TL) if int((token_L != 0).sum()) > tower.context_length]
    assert tower.overlong(texts) == wanted
    assert 0 < len(wanted) < len(texts)


def test_names_that_are_one_text_to_the_tokenizer_are_refused():
    clip = tiny_clip()
    clip.class_embeddings(["C", "C++", "C#"], ["a {}."])
    whole = clip.text_tower._tokenizer
    clip.text_tower._tokenizer = lambda texts, context_length: whole(
        [text.replace("+", "") for text in texts], context_length=context_length
    )
    with pytest.raises(UserError, match=r"'C' and 'C\+\+' are the same text"):
        clip.class_embeddings(["C", "C++"], ["a {}."])


@pytest.mark.parametrize("kind", ["clip", "custom", "bidirectional"])
def test_towers_that_take_prompts_reproduce_their_own_features(kind):
    clip = tiny_clip(kind)
    assert clip.text_tower.reproduces_itself()
    class_tokens(clip.text_tower, ["cat", "dog"], 2)


def test_a_tower_that_does_more_than_the_common_view_knows_is_refused():
    clip = tiny_clip("custom")
    inner = clip.model.encode_text
    clip.model.encode_text = lambda token_TL, *args: inner(token_TL.flip(0), *args)
    with pytest.raises(UserError, match=r"model\.prompt=visual"):
        class_tokens(clip.text_tower, ["cat", "dog"], 2)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["MobileCLIP2-S0", "MobileCLIP-S1"])
@pytest.mark.parametrize("words", ["a photo of a", "x"])
def test_prompt_tokens_that_are_words_give_what_the_words_give(architecture, words):
    clip = load_clip(f"{architecture}/random")
    tower = clip.text_tower
    token_L = tower.tokenize([words])[0]
    word_P = token_L[1 : int(tower.end_positions(token_L[None])[0])]
    names = ["cat", "very annual crop land"]
    prompt = TextPrompt(clip, names, n_tokens=len(word_P), classes_per_chunk=9, seed=0)
    with torch.no_grad():
        context_PD = tower._tower.token_embedding(word_P)
        torch.testing.assert_close(
            prompt(context_PD), clip.encode_text([f"{words} {name}" for name in names]), atol=1e-4, rtol=0
        )
