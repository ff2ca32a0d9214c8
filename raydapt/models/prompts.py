"""What is learned: prompts for a frozen CLIP. Text prompts, visual prompts, and both, coupled.

Legend: B batch, C classes, L prompt tokens, P tokens that all classes share (start-of-text and prompt), S tokens of the
class names, D width, S S image height and width in px (in `pixel_B3SS` alone).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raydapt.errors import UserError
from raydapt.models.clip import Clip, OnClip
from raydapt.models.effect import moves, sample_pixels
from raydapt.models.joint_prompt import JointPrompt
from raydapt.models.text_tower import class_tokens
from raydapt.models.vision_tower import extra_tokens, vision_width
from raydapt.settings.groups import ModelSettings

CONTEXT_STD = 0.02


class TextPrompt(OnClip):
    """Learned token embeddings before every class name: start-of-text, prompt, name (no full stop), end-of-text.

    The prompt is shared by all classes (CoOp with a unified context). Everything else of the text is computed once.

    Args:
        clip: The frozen model.
        class_names: C names.
        n_tokens: Prompt tokens.
        classes_per_chunk: Above so many classes, texts are encoded chunk by chunk and recomputed in the backward
            pass, so that memory does not grow with C beyond the class embeddings themselves.
        seed: Of the initial prompt, N(0, 0.02²).

    Raises:
        UserError: When a class name does not fit behind the prompt.
    """

    head_PD: Tensor
    position_LD: Tensor
    name_CSD: Tensor
    end_C: Tensor

    def __init__(
        self, clip: Clip, class_names: Sequence[str], *, n_tokens: int, classes_per_chunk: int, seed: int
    ) -> None:
        super().__init__(clip)
        self.classes_per_chunk = classes_per_chunk
        self.context_LD = nn.Parameter(torch.empty(n_tokens, clip.text_tower.width, device=clip.device))
        with torch.no_grad():
            self._freeze_names(class_names, n_tokens)
        self.reset(seed)

    def _freeze_names(self, class_names: Sequence[str], n_tokens: int) -> None:
        """Embeds once what no step changes: the start-of-text, the prompt's positions and the class names."""
        tower, start = self.clip.text_tower, self.clip.text_tower.start_length()
        token_CL, end_C = class_tokens(tower, class_names, n_tokens)
        if tower.croppable:
            name_CS, end_C = token_CL[:, start : int(end_C.max()) + 1], end_C - start
        else:  # the padding is part of what such a tower reads: the whole length stays
            name_CS = token_CL[:, start : tower.context_length - n_tokens]
            # An end-of-text token moves with the name (MobileCLIP); the first or last place stays where it is.
            end_C = end_C - start - (0 if tower.reads_end_of_text else n_tokens)
        frozen = {
            "head_PD": tower.embed(token_CL[:1, :start], first_position=0)[0],
            "position_LD": tower.positions(start, start + n_tokens),
            "name_CSD": tower.embed(name_CS, first_position=start + n_tokens),
            "end_C": end_C.to(self.clip.device),
        }
        for key, value in frozen.items():
            self.register_buffer(key, value.detach().clone(), persistent=False)

    def reset(self, seed: int) -> None:
        """Draws the prompt anew; the same seed gives the same prompt on every device."""
        fresh_LD = torch.randn(self.context_LD.shape, generator=torch.Generator().manual_seed(seed)) * CONTEXT_STD
        with torch.no_grad():
            self.context_LD.copy_(fresh_LD)

    def forward(self, context_LD: Tensor | None = None) -> Tensor:
        """L2-normalised class embeddings [C, D]; of another context than the own one when it is given."""
        context_LD = self.context_LD if context_LD is None else context_LD
        prefix_PD = torch.cat([self.head_PD, context_LD + self.position_LD])
        n_classes, size = len(self.end_C), self.classes_per_chunk
        if n_classes <= size:
            return self._encode(prefix_PD, self.name_CSD, self.end_C)
        chunks = [
            checkpoint(
                self._encode,
                prefix_PD,
                self.name_CSD[start : start + size],
                self.end_C[start : start + size],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, n_classes, size)
        ]
        return torch.cat(chunks)

    def _encode(self, prefix_PD: Tensor, name_CSD: Tensor, end_C: Tensor) -> Tensor:
        feature_CD = self.clip.text_tower.encode_continued(prefix_PD, name_CSD, end_C)
        return F.normalize(feature_CD.to(torch.float32), dim=-1)


class VisualPrompt(OnClip):
    """Learned tokens that the image tower reads behind its class token, before the first layer norm (shallow VPT).

    Args:
        clip: The frozen model; its image tower must be a vision transformer.
        n_tokens: Prompt tokens; 0 gives the plain tower.
        seed: Of the initial prompt, N(0, 1 / width).

    Raises:
        UserError: When the tower is no vision transformer, or does not read the tokens.
    """

    def __init__(self, clip: Clip, *, n_tokens: int, seed: int) -> None:
        super().__init__(clip)
        width = vision_width(clip.model.visual)
        self.prompt_LD = nn.Parameter(torch.empty(n_tokens, width, device=clip.device))
        self.reset(seed)
        if n_tokens:
            self._require_effect()

    def _require_effect(self) -> None:
        """Refuses towers that read no tokens where these are put, or that do more than pass them on."""
        clip, pixel_13SS = self.clip, sample_pixels(self.clip)
        with torch.no_grad():
            plain_1D = clip.encode_image(pixel_13SS)
            with extra_tokens(clip.model.visual, self.prompt_LD[:0]):
                same = bool((plain_1D * clip.encode_image(pixel_13SS)).sum() > 1 - 1e-4)
        if not same or not moves(lambda: self(pixel_13SS), [self.prompt_LD]):
            raise UserError(
                f"Setting model.prompt: the image tower of model.clip={clip.name!r} does not read a visual prompt as "
                "vision transformers do: choose model.prompt=text or another model.clip."
            )

    def reset(self, seed: int) -> None:
        """Draws the prompt anew; the same seed gives the same prompt on every device."""
        fresh_LD = torch.randn(self.prompt_LD.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.prompt_LD.copy_(fresh_LD * self.prompt_LD.shape[1] ** -0.5)

    def forward(self, pixel_B3SS: Tensor, prompt_LD: Tensor | None = None) -> Tensor:
        """L2-normalised image features [B, D] of uint8 pixels; with another prompt than the own one when given."""
        prompt_LD = self.prompt_LD if prompt_LD is None else prompt_LD
        if not len(prompt_LD):
            return self.clip.encode_image(pixel_B3SS)
        with extra_tokens(self.clip.model.visual, prompt_LD):
            return self.clip.encode_image(pixel_B3SS)


class PromptedClip(OnClip):
    """A classifier over class names: frozen CLIP and learned prompts of the kind that `model.prompt` names.

    `text` learns a text prompt and reads cached image features. `visual` learns a visual prompt against the class
    embeddings of the first template. `both` learns the two through a small shared transformer (`JointPrompt`).

    Args:
        clip: The frozen model.
        class_names: C names.
        templates: Prompt wordings; the first one words the classes of a visual prompt.
        settings: Kind and sizes of the prompts.
        seed: Of the initial prompts.
    """

    class_CD: Tensor | None

    def __init__(
        self, clip: Clip, class_names: Sequence[str], templates: Sequence[str], settings: ModelSettings, *, seed: int
    ) -> None:
        super().__init__(clip)
        kind = settings.prompt
        self.uses_pixels = kind in ("visual", "both")
        self.text: TextPrompt | None = None
        self.visual: VisualPrompt | None = None
        self.joint: JointPrompt | None = None
        if kind != "visual":
            n_tokens, size = settings.text_prompt_tokens, settings.classes_per_chunk
            self.text = TextPrompt(clip, class_names, n_tokens=n_tokens, classes_per_chunk=size, seed=seed)
        if self.uses_pixels:
            self.visual = VisualPrompt(clip, n_tokens=settings.visual_prompt_tokens, seed=seed)
        if kind == "both":
            self.joint = JointPrompt(clip.text_tower.width, vision_width(clip.model.visual), seed=seed).to(clip.device)
        class_CD = clip.class_embeddings(class_names, templates[:1]) if self.text is None else None
        self.register_buffer("class_CD", class_CD, persistent=False)
        self._evaluated: tuple[Tensor, Tensor] | None = None

    def reset(self, seed: int) -> None:
        """Draws everything that is learned anew."""
        for part in (self.text, self.visual, self.joint):
            if part is not None:
                part.reset(seed)

    def forward(self, image_B: Tensor) -> Tensor:
        """Logits [B, C], float32.

        Args:
            image_B: uint8 pixels [B, 3, S, S], or for a text prompt alone float features [B, D] of the frozen tower.
        """
        context_LD, prompt_LD = self._prompts()
        feature_BD = self._image_features(image_B, prompt_LD)
        class_CD = self._class_embeddings(context_LD)
        # A cosine times 100 needs more digits than bf16 has.
        with torch.autocast(feature_BD.device.type, enabled=False):
            return self.clip.logit_scale * feature_BD.to(torch.float32) @ class_CD.to(torch.float32).T

    def image_features(self, image_B: Tensor) -> Tensor:
        """L2-normalised features [B, D] under the visual prompt as it is learned now; cached ones are given back."""
        return self._image_features(image_B, self._prompts()[1])

    def class_embeddings(self) -> Tensor:
        """L2-normalised class embeddings [C, D] as they are learned now."""
        return self._class_embeddings(self._prompts()[0])

    def _prompts(self) -> tuple[Tensor | None, Tensor | None]:
        context_LD = None if self.text is None else self.text.context_LD
        prompt_LD = None if self.visual is None else self.visual.prompt_LD
        if self.joint is not None and context_LD is not None and prompt_LD is not None:
            context_LD, prompt_LD = self.joint(context_LD, prompt_LD)
        return context_LD, prompt_LD

    def _image_features(self, image_B: Tensor, prompt_LD: Tensor | None) -> Tensor:
        if self.visual is not None:
            feature_BD: Tensor = self.visual(image_B, prompt_LD)
            return feature_BD
        if image_B.is_floating_point():
            return image_B
        return self.clip.encode_image(image_B)

    def _class_embeddings(self, context_LD: Tensor | None) -> Tensor:
        if self.text is None:
            assert self.class_CD is not None  # set in the constructor when nothing of the text is learned
            return self.class_CD
        if torch.is_grad_enabled():
            class_CD: Tensor = self.text(context_LD)
            return class_CD
        return self._unchanged_or_encoded(context_LD)

    def _unchanged_or_encoded(self, context_LD: Tensor | None) -> Tensor:
        """Outside training the class texts are encoded once for all batches, not once a batch."""
        assert self.text is not None
        assert context_LD is not None
        if self._evaluated is not None:
            seen_LD, class_CD = self._evaluated
            if seen_LD.device == context_LD.device and torch.equal(seen_LD, context_LD):
                return class_CD
        encoded_CD: Tensor = self.text(context_LD)
        self._evaluated = (context_LD.detach().clone(), encoded_CD)
        return encoded_CD
