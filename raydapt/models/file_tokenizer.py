"""Tokenizers that are one file, read by the `tokenizers` library alone: transformers takes seconds to import.

Legend: T texts, L context length.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from open_clip.tokenizer import get_clean_fn
from tokenizers import Tokenizer
from torch import Tensor

_CLASS = "TokenizersBackend"
"""What transformers calls a tokenizer that is its `tokenizer.json` and nothing else."""


class FileTokenizer:
    """The token ids that open_clip's `HFTokenizer` makes of the same folder."""

    def __init__(self, folder: Path, *, context_length: int, clean: str) -> None:
        config = _config(folder)
        self.context_length = context_length
        self._clean = get_clean_fn(clean)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._padding = {"pad_token": config["pad_token"], "pad_id": self._tokenizer.token_to_id(config["pad_token"])}

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """int64 token ids [T, L], cut or filled up to the context length."""
        length = context_length or self.context_length
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, **self._padding)
        encodings = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        return torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64).reshape(-1, length)


def is_one_file(folder: Path | None) -> TypeGuard[Path]:
    """Whether the tokenizer of an open_clip folder is its `tokenizer.json` and nothing else."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return False
    config = _config(folder)
    return config.get("tokenizer_class") == _CLASS and config.get("padding_side", "right") == "right"


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
