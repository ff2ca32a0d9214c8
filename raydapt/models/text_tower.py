"""One view of the text towers of open_clip, with the two short cuts that causal attention allows.

A causal tower reads its feature off the end-of-text token, which sees nothing behind it: tokens after the longest
end-of-text in use are cut off. And texts that begin alike share what the beginning computes: class prompts differ in
the class name alone, so their common beginning runs through the tower once instead of once per class. Both are exact.

Legend: T texts, L tokens, P tokens of a shared beginning, S tokens of the endings, D width, H heads,
N all tokens of a batch laid end to end (P + T * S).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from raydapt.data.classes import fill_template
from raydapt.errors import UserError


class TextTower:
    """The text half of an open_clip model; it owns no weights, it reads those of the model.

    Attributes:
        croppable: Whether a text's feature depends on nothing behind its end-of-text token.
        promptable: Whether token embeddings can be fed in place of tokens.
        context_length: Tokens that the tower can read.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self._model = model
        # open_clip.CLIP carries the parts of its text tower itself, CustomTextCLIP has them in `.text`.
        self._tower: Any = getattr(model, "text", model)
        self._tokenizer = tokenizer
        self._pool = getattr(self._tower, "text_pool_type", None) or getattr(self._tower, "pool_type", "")
        self._eos_id = getattr(self._tower, "text_eos_id", getattr(self._tower, "eos_id", None))
        parts = ("transformer", "token_embedding", "positional_embedding", "ln_final")
        self.promptable = (
            all(hasattr(self._tower, part) for part in parts)
            and getattr(self._tower, "cls_emb", None) is None
            and not getattr(self._tower, "use_pad_mask", False)
            and self._pool in ("argmax", "eos", "last", "first")
        )
        self.croppable = self.promptable and self._mask is not None and self._pool in ("argmax", "eos")
        blocks = self._tower.transformer.resblocks if self.promptable else []
        self._shareable = self.croppable and all(type(block) is ResidualAttentionBlock for block in blocks)
        self.context_length = int(getattr(self._tower, "context_length", 0) or tokenizer.context_length)

    @property
    def width(self) -> int:
        """Width of a token embedding."""
        return int(self._tower.token_embedding.weight.shape[1])

    @property
    def reads_end_of_text(self) -> bool:
        """Whether the feature is read off the end-of-text token, wherever it stands, and not off a fixed place."""
        return self._pool in ("argmax", "eos")

    @property
    def _mask(self) -> Tensor | None:
        mask = getattr(self._tower, "attn_mask", None)
        return mask if isinstance(mask, Tensor) else None

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """int64 tokens [T, context_length] on the CPU; a longer text is cut as open_clip does."""
        token_TL = self._tokenizer(list(texts), context_length=self.context_length)
        return torch.as_tensor(token_TL, dtype=torch.int64)

    def overlong(self, texts: Sequence[str]) -> list[int]:
        """Which texts have more tokens than the tower can read, so that `tokenize` cuts them."""
        # A token is a character at least (a byte, in CLIP's tokenizer): most texts need not be looked at.
        doubtful = [i for i, text in enumerate(texts) if len(text.encode()) > self.context_length - 8]
        if not doubtful:
            return []
        chosen = [texts[i] for i in doubtful]
        cut_TL = self.tokenize(chosen)
        whole_TL = torch.as_tensor(self._tokenizer([*chosen, ""], context_length=self.context_length + 1)).long()
        # A cut text ends in the end-of-text token where the whole one goes on, or has no padding where others have.
        goes_on_T = (whole_TL[:-1, :-1] != cut_TL).any(dim=1) | (whole_TL[:-1, -1] != whole_TL[-1, -1])
        return [i for i, is_cut in zip(doubtful, goes_on_T.tolist(), strict=True) if is_cut]

    def start_length(self) -> int:
        """Tokens that stand before the text itself: 1 with a start-of-text token, 0 without."""
        if not self.croppable:
            empty_L, letter_L = self.tokenize(["", "a"])
            return int(empty_L[0] == letter_L[0])
        return int(self.end_positions(self.tokenize([""]))[0])

    def end_positions(self, token_TL: Tensor) -> Tensor:
        """Position [T] of the token that the tower reads the feature off."""
        if self._pool == "argmax":  # end-of-text is the highest token
            return token_TL.argmax(dim=1)
        if self._pool == "eos":
            return token_TL.eq(torch.as_tensor(self._eos_id)).int().argmax(dim=1)
        last = 0 if self._pool == "first" else token_TL.shape[1] - 1
        return torch.full((len(token_TL),), last, dtype=torch.int64, device=token_TL.device)

    @torch.no_grad()
    def reproduces_itself(self) -> bool:
        """Whether embeddings of whole texts, fed as prompts are, give what open_clip's `encode_text` gives."""
        token_TL = self.tokenize(["a photo of a cat.", "river"]).to(self._device)
        expected_TD: Tensor = self._model.encode_text(token_TL)  # type: ignore[operator]
        actual_TD = self._encode_embeddings(self.embed(token_TL, first_position=0), self.end_positions(token_TL))
        cosine_T = F.cosine_similarity(actual_TD.float(), expected_TD.float(), dim=-1)
        return bool((cosine_T > 1 - 1e-4).all())

    def encode_tokens(self, token_TL: Tensor) -> Tensor:
        """Features [T, D] of tokens, not normalised; the same as open_clip's `encode_text`, cropped where it can be."""
        token_TL = token_TL.to(self._device)
        if not self.croppable:
            feature_TD: Tensor = self._model.encode_text(token_TL)  # type: ignore[operator]
            return feature_TD
        end_T = self.end_positions(token_TL)
        embedding_TLD = self.embed(token_TL[:, : int(end_T.max()) + 1], first_position=0)
        return self._encode_embeddings(embedding_TLD, end_T)

    def embed(self, token_TL: Tensor, *, first_position: int) -> Tensor:
        """Token plus positional embeddings [T, L, D] of tokens that stand at `first_position` and after."""
        token_TL = token_TL.to(self._device)
        embedding_TLD: Tensor = self._tower.token_embedding(token_TL)
        return embedding_TLD + self.positions(first_position, first_position + token_TL.shape[1])

    def positions(self, start: int, stop: int) -> Tensor:
        """Positional embeddings [stop - start, D]."""
        position_LD: Tensor = self._tower.positional_embedding[start:stop]
        return position_LD

    def encode_continued(self, prefix_PD: Tensor, suffix_TSD: Tensor, end_T: Tensor) -> Tensor:
        """Features [T, D], not normalised, of texts that begin alike and go on differently.

        Args:
            prefix_PD: Embeddings, positions included, of the shared beginning.
            suffix_TSD: Embeddings, positions included, of what follows in each text.
            end_T: Position of each text's pooled token within its suffix.
        """
        if not self._shareable:
            beginning_TPD = prefix_PD.expand(len(suffix_TSD), -1, -1)
            return self._encode_embeddings(torch.cat([beginning_TPD, suffix_TSD], dim=1), end_T + len(prefix_PD))
        n_texts, length, width = suffix_TSD.shape
        hidden_ND = torch.cat([prefix_PD, suffix_TSD.reshape(n_texts * length, width)])
        mask_SL = _suffix_mask(len(prefix_PD), length, hidden_ND.device)
        for block in self._tower.transformer.resblocks:
            attended_ND = _shared_prefix_attention(block.attn, block.ln_1(hidden_ND), len(prefix_PD), mask_SL)
            hidden_ND = hidden_ND + block.ls_1(attended_ND)
            hidden_ND = hidden_ND + block.ls_2(block.mlp(block.ln_2(hidden_ND)))
        start_T = torch.arange(n_texts, device=end_T.device) * length + len(prefix_PD)
        return self._project(hidden_ND[start_T + end_T])

    def _encode_embeddings(self, embedding_TLD: Tensor, end_T: Tensor) -> Tensor:
        length = embedding_TLD.shape[1]
        mask = self._mask
        mask_LL = None if mask is None else mask[:length, :length]
        hidden_TLD: Tensor = self._tower.transformer(embedding_TLD, attn_mask=mask_LL)
        return self._project(hidden_TLD[torch.arange(len(end_T), device=end_T.device), end_T])

    def _project(self, hidden_TD: Tensor) -> Tensor:
        # The final layer norm works token by token: after pooling it has one token a text to do.
        pooled_TD: Tensor = self._tower.ln_final(hidden_TD)
        projection = self._tower.text_projection
        if projection is None:
            return pooled_TD
        feature_TD: Tensor = projection(pooled_TD) if isinstance(projection, nn.Module) else pooled_TD @ projection
        return feature_TD


def require_whole_prompts(tower: TextTower, class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Refuses prompts of which the tower would not see all, and names that are one text to its tokenizer.

    Two classes whose prompts are cut to the same tokens, or differ in characters that the tokenizer drops, are one
    class to the model: each would get half the probability, and one would never be said.

    Raises:
        UserError: With the first name, and the way out.
    """
    for template in templates:
        if cut := tower.overlong([fill_template(template, name) for name in class_names]):
            name = class_names[cut[0]]
            raise UserError(
                f"Class name {name[:80]!r} in data.templates={template[:80]!r} does not fit into the "
                f"{tower.context_length} tokens of the text tower and would be cut: shorten the name or the template."
            )
    first: dict[bytes, str] = {}
    for name, token_L in zip(class_names, tower.tokenize([fill_template(templates[0], n) for n in class_names]),
                             strict=True):  # fmt: skip
        other = first.setdefault(token_L.numpy().tobytes(), name)
        if other is not name:
            raise UserError(
                f"data.class_names: {other[:80]!r} and {name[:80]!r} are the same text to the tokenizer of this model: "
                "spell one of them differently, such as 'C plus plus' for 'C++', or choose another model.clip."
            )


def class_tokens(tower: TextTower, class_names: Sequence[str], n_context: int) -> tuple[Tensor, Tensor]:
    """Tokens [C, L] of class names and the position [C] each is read at, once `n_context` tokens stand before the name.

    Raises:
        UserError: When a name has no room behind the context, or the tower takes no token embeddings.
    """
    if not tower.promptable:
        raise UserError(
            "Setting model.prompt needs a text tower that takes token embeddings, which this model's has not: "
            "choose model.prompt=visual or another model.clip."
        )
    if not tower.reproduces_itself():
        raise UserError(
            "Setting model.prompt: token embeddings, fed to the text tower of this model, do not give the features "
            "that its texts have, so a prompt would be learned for another model: choose model.prompt=visual or "
            "another model.clip."
        )
    token_CL = tower.tokenize(class_names)
    end_C = tower.end_positions(token_CL)
    if tower.croppable:
        length_C = end_C + 1
    else:  # the end is padded: a text ends where it stops to differ from its padding
        padding_L = tower.tokenize([""])[0, -1]
        length_C = (token_CL != padding_L).int().cumsum(dim=1).argmax(dim=1) + 1
    longest = int(length_C.argmax())
    if int(length_C[longest]) + n_context > tower.context_length:
        raise UserError(
            f"Class name {class_names[longest][:80]!r} and model.text_prompt_tokens={n_context} do not fit into the "
            f"{tower.context_length} tokens of the text tower: shorten the name or use fewer prompt tokens."
        )
    return token_CL, end_C


def _suffix_mask(n_prefix: int, n_suffix: int, device: torch.device) -> Tensor:
    """Which keys [S, P + S] a token of a suffix sees: all of the prefix, its own suffix up to itself."""
    own_SS = torch.ones(n_suffix, n_suffix, dtype=torch.bool, device=device).tril()
    return torch.cat([own_SS.new_ones(n_suffix, n_prefix), own_SS], dim=1)


def _shared_prefix_attention(attention: nn.MultiheadAttention, x_ND: Tensor, n_prefix: int, mask_SL: Tensor) -> Tensor:
    """Causal self-attention of a prefix and of the T suffixes that follow it; all projections on the flat tokens."""
    n_heads, length = attention.num_heads, len(mask_SL)
    query, key, value = (
        part_ND.reshape(len(part_ND), n_heads, -1)
        for part_ND in F.linear(x_ND, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=1)
    )

    def suffixes(part: Tensor) -> Tensor:  # [T, H, S, D/H]
        return part[n_prefix:].reshape(-1, length, *part.shape[1:]).transpose(1, 2)

    def prefix(part: Tensor) -> Tensor:  # [1, H, P, D/H]
        return part[:n_prefix].transpose(0, 1).unsqueeze(0)

    first = F.scaled_dot_product_attention(prefix(query), prefix(key), prefix(value), is_causal=True)
    n_texts = suffixes(key).shape[0]
    key_all, value_all = (
        torch.cat([prefix(part).expand(n_texts, -1, -1, -1), suffixes(part)], dim=2) for part in (key, value)
    )
    rest = F.scaled_dot_product_attention(suffixes(query), key_all, value_all, attn_mask=mask_SL)
    flat_ND = torch.cat([first.transpose(1, 2).flatten(0, 1), rest.transpose(1, 2).flatten(0, 1)]).flatten(1)
    return F.linear(flat_ND, attention.out_proj.weight, attention.out_proj.bias)
