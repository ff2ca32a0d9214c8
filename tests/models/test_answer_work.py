"""What a token costs a language model, against its weights as they lie in its file."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import MixtralConfig, MixtralForCausalLM

from raydapt.models.answer_work import AnswerWork, answer_work, work_of_model
from raydapt.models.language import MINI_CAPTIONER


def test_a_token_passes_the_layers_of_the_language_model_and_an_answer_the_head():
    layers, head = 0, 0
    with safe_open(MINI_CAPTIONER / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dictionary
            size = file.get_slice(name).get_shape()
            count = size[0] * (size[1] if len(size) > 1 else 1)
            if "embed_tokens" in name:
                head = count  # the same matrix finds the token of a number and the number of a token
            elif "language_model" in name and "lm_head" not in name:
                layers += count
    work = answer_work(str(MINI_CAPTIONER))
    assert work == AnswerWork(layers=layers, head=head, precision="bf16")
    assert layers > head > 0
    assert work.flop(70, 9) == 2 * (70 + 9) * layers + 2 * 9 * head


@pytest.mark.parametrize("tied", [True, False])
def test_of_a_mixture_a_token_passes_the_experts_that_it_is_sent_to(tied):
    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=2, tie_word_embeddings=tied,
        dtype=torch.float16,
    )  # fmt: skip
    attention, router, expert, norms = 4 * 16 * 16, 6 * 16, 3 * 16 * 24, 2 * 16
    expected = 2 * (attention + router + 2 * expert + norms) + 16
    work = work_of_model(MixtralForCausalLM(config), config)
    assert work.layers == pytest.approx(expected)
    assert (work.head, work.precision) == (50 * 16, "fp16")


def test_a_model_that_transformers_cannot_build_has_unknown_work(tmp_path: Path):
    assert answer_work(str(tmp_path)) == AnswerWork()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "unheard_of"}')
    assert answer_work(str(tmp_path / "model")).flop(3, 4) == 0
