"""A Llama of a few thousand weights that has learned some answers by heart, for tests that ask an instruct model."""

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from pretraining.clip_tokenizer import END, START, as_transformers, train_tokenizer

CONTEXT_LENGTH = 160
# The start of text is in the template and added by the tokenizer as well, as with published Llamas.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
STEPS, UNSEEN = 150, -100


def save_tiny_instruct(folder: Path, answers: Mapping[str, str], *, seed: int = 0) -> str:
    """Writes a text-only checkpoint in transformers' layout that gives these answers to these questions.

    Args:
        folder: Made here.
        answers: What it says, in small letters, to each question.
        seed: Of the weights.

    Returns:
        The folder's name.
    """
    plain = train_tokenizer([*answers, *answers.values()], vocabulary_size=700)
    plain.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, plain.token_to_id(START))]
    )
    tokenizer = as_transformers(plain, context_length=CONTEXT_LENGTH)
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rows = []
    for question, answer in answers.items():
        message = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        rows.append((asked, tokenizer(answer + END, add_special_tokens=False)["input_ids"]))
    _learn(model, rows, tokenizer.pad_token_id)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _learn(model: LlamaForCausalLM, rows: list[tuple[list[int], list[int]]], padding: int) -> None:
    """Fits the answers, not the questions."""
    longest = max(len(asked) + len(said) for asked, said in rows)
    token_BL = torch.full((len(rows), longest), padding)
    target_BL = torch.full((len(rows), longest), UNSEEN)
    for b, (asked, said) in enumerate(rows):
        token_BL[b, : len(asked) + len(said)] = torch.tensor(asked + said)
        target_BL[b, len(asked) : len(asked) + len(said)] = torch.tensor(said)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=token_BL, attention_mask=(token_BL != padding).long(), labels=target_BL).loss.backward()
        optimizer.step()
    model.eval()
