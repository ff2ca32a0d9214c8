"""The small tokenizer, as trained here and as saved and loaded again."""

from pathlib import Path

import open_clip
import pytest
import torch
from tokenizers import Tokenizer

from pretraining.clip_batches import crop, tokenise
from pretraining.clip_model import CONTEXT_LENGTH
from pretraining.clip_tokenizer import END, PADDING, START, save_tokenizer, train_tokenizer

TEXTS = ["a photo of a dog.", "a photo of a Cat.", "a satellite photo of highway or road."] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocabulary_size=320)


def test_end_is_the_last_id_and_padding_the_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id(END) == tokenizer.get_vocab_size() - 1
    assert tokenizer.token_to_id(PADDING) == 0
    assert tokenizer.token_to_id(START) == 1


def test_any_text_survives_in_lower_case(tokenizer: Tokenizer) -> None:
    for text in ("a photo of a dog.", "Ünïcödé → 漢字", "UPPER case"):
        ids = tokenizer.encode(text).ids
        assert (ids[0], ids[-1]) == (1, tokenizer.get_vocab_size() - 1)
        assert tokenizer.decode(ids).strip() == text.lower()


def test_long_texts_keep_their_end(tokenizer: Tokenizer) -> None:
    tokens_KL = tokenise(tokenizer, ["word " * 200, "dog"])
    assert tokens_KL.shape == (2, CONTEXT_LENGTH)
    end = tokenizer.get_vocab_size() - 1
    assert tokens_KL[0, -1] == end
    assert (tokens_KL == end).sum(1).tolist() == [1, 1]


def test_crop_drops_padding_columns_only(tokenizer: Tokenizer) -> None:
    tokens_KL = tokenise(tokenizer, ["a dog", "a photo of a dog."])
    cropped = crop(tokens_KL)
    assert cropped.shape[1] == int((tokens_KL != 0).sum(1).max())
    assert torch.equal(cropped, tokens_KL[:, : cropped.shape[1]])


def test_open_clip_reads_what_was_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path, context_length=CONTEXT_LENGTH)
    loaded = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=CONTEXT_LENGTH)
    texts = ["A photo of a DOG.", "highway  or road"]
    clean = ["A photo of a DOG.", "highway or road"]
    assert torch.equal(loaded(texts), tokenise(tokenizer, clean))
