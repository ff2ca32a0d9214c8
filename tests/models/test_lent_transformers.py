"""Text towers of Hugging Face work though open_clip was imported without transformers."""

import pytest
import torch
from open_clip import hf_model

from raydapt.models import _HF_NAMES, lend_transformers


def test_a_text_tower_of_hugging_face_is_built_once_transformers_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0
    )
    for name in ("transformers", *(name for names in _HF_NAMES.values() for name in names)):
        monkeypatch.setattr(hf_model, name, None, raising=False)  # as after an import that found no transformers
    words = {"config": config, "output_dim": 4, "pooler_type": "mean_pooler", "proj_type": "linear"}
    with pytest.raises(RuntimeError, match="pip install transformers"):
        hf_model.HFTextEncoder("tiny", **words)
    lend_transformers()
    with torch.no_grad():
        assert hf_model.HFTextEncoder("tiny", **words)(torch.tensor([[1, 2, 3]])).shape == (1, 4)
