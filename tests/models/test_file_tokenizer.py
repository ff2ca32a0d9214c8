"""A tokenizer of one file gives the ids that transformers makes of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer

from raydapt.models.clip import load_clip
from raydapt.models.clip_names import find_clip
from raydapt.models.file_tokenizer import FileTokenizer, is_one_file

FOLDER = find_clip("mini").folder
assert FOLDER is not None
OURS = FileTokenizer(FOLDER, context_length=77, clean="whitespace")
THEIRS = HFTokenizer(str(FOLDER), context_length=77, clean="whitespace")
TEXTS = ["", "a photo of a  Dog.", "café", "cafe\u0301", "C++", "日本 🌳", "a " * 200, "<|endoftext|>", "a&amp;b\n\tc"]


def test_the_miniature_clip_uses_it() -> None:
    assert is_one_file(FOLDER)
    assert isinstance(load_clip("mini").tokenizer, FileTokenizer)


def test_ids_are_those_of_transformers() -> None:
    for length in (77, 78, 8, 3):
        assert torch.equal(OURS(TEXTS, context_length=length), THEIRS(TEXTS, context_length=length))
    assert OURS([]).shape == (0, 77)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_ids_of_any_text_are_those_of_transformers(texts: list[str]) -> None:
    assert torch.equal(OURS(texts), THEIRS(texts))


def test_other_tokenizers_are_left_to_transformers(tmp_path) -> None:
    assert not is_one_file(None)
    assert not is_one_file(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert not is_one_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    assert not is_one_file(tmp_path)
