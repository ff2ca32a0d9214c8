"""A small byte-pair tokenizer for the miniature CLIP.

open_clip pools its text tower at the *largest token id* of a sequence, so end-of-text is the last id of the
vocabulary and padding is id 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PADDING = "<|pad|>"
START = "<|startoftext|>"
END = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int) -> Tokenizer:
    """Learns byte-level merges from ``texts``; end-of-text is appended last, so it has the largest id.

    Args:
        texts: Captions, class names and sentences with them.
        vocabulary_size: Upper bound of the number of ids, special tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # Bytes as the alphabet: no text can be unknown. A leading space makes words equal wherever they stand.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,
        special_tokens=[PADDING, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END])
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    return tokenizer


def as_transformers(tokenizer: Tokenizer, *, context_length: int) -> PreTrainedTokenizerFast:
    """Wraps it the way the ecosystem loads tokenizers, with padding and the context length set."""
    from transformers import PreTrainedTokenizerFast

    wrapper: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = wrapper(
        tokenizer_object=tokenizer,
        model_max_length=context_length,
        pad_token=PADDING,
        bos_token=START,
        eos_token=END,
        padding_side="right",
    )
    return wrapped


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context_length: int) -> None:
    """Writes ``tokenizer.json`` and its companions into ``folder``."""
    as_transformers(tokenizer, context_length=context_length).save_pretrained(str(folder))
