"""The text towers of Hugging Face's transformers within open_clip (RoBERTa, XLM-RoBERTa, NLLB, mT5).

They add positions themselves and are told which tokens to attend to, so tokens behind a text's end are cut off here,
exactly, and a text that open_clip pads to 514 tokens costs what its own tokens cost.

Legend: T texts, L tokens, P tokens of a shared beginning, S tokens of the endings, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raydapt.models.text_tower import TextTower


class HuggingFaceTextTower(TextTower):
    """The text half of an open_clip model whose text tower is an encoder of transformers."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        # open_clip takes the number of positions for the longest text, of which RoBERTa reserves the first two.
        self.context_length = min(self.context_length, int(tokenizer.context_length))
        self.promptable = self.croppable = True

    @property
    def width(self) -> int:
        """Width of a token embedding."""
        return int(self._words.weight.shape[1])

    @property
    def reads_end_of_text(self) -> bool:
        """The end moves with the text, as the attention's mask does."""
        return True

    @property
    def _words(self) -> Any:
        return self._tower.transformer.get_input_embeddings()

    def end_positions(self, token_TL: Tensor) -> Tensor:
        """Position [T] of the last token of each text: what stands behind it is not attended to."""
        is_text_TL = token_TL != self._tower.config.pad_token_id
        place_L = torch.arange(token_TL.shape[1], device=token_TL.device)
        end_T: Tensor = (is_text_TL * place_L).amax(dim=1)
        return end_T

    def embed(self, token_TL: Tensor, *, first_position: int) -> Tensor:
        """Token embeddings [T, L, D], without positions: the encoder adds them itself."""
        del first_position
        embedding_TLD: Tensor = self._words(token_TL.to(self._device))
        return embedding_TLD

    def positions(self, start: int, stop: int) -> Tensor:
        """Zeros [stop - start, D]: the encoder adds positions itself."""
        return torch.zeros(stop - start, self.width, device=self._device)

    def _encode_embeddings(self, embedding_TLD: Tensor, end_T: Tensor) -> Tensor:
        place_L = torch.arange(embedding_TLD.shape[1], device=embedding_TLD.device)
        mask_TL = (place_L <= end_T.to(embedding_TLD.device)[:, None]).long()
        hidden = self._tower.transformer(inputs_embeds=embedding_TLD, attention_mask=mask_TL)
        feature_TD: Tensor = self._tower.proj(self._tower.pooler(hidden, mask_TL))
        return feature_TD


def text_tower_of(model: nn.Module, tokenizer: Any) -> TextTower:
    """The view of a model's text half that fits its class."""
    # By name: the class itself is in a module that imports transformers, which takes seconds.
    is_encoder = type(getattr(model, "text", None)).__name__ == "HFTextEncoder"
    return (HuggingFaceTextTower if is_encoder else TextTower)(model, tokenizer)
