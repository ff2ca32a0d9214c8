"""A frozen CLIP of which nothing is left but its class embeddings: what is learned on features needs no more.

Legend: M rows of the file, C classes, D width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from raydapt.data.class_features import ClassFeatures
from raydapt.errors import UserError
from raydapt.models.clip import Clip

NAME = "given"
"""What `model.clip` is called where there is no model."""


class GivenEmbeddings(Clip):
    """A `Clip` without towers.

    It answers `class_embeddings`, `logit_scale`, `embed_dim`, `identity` and `device`, which is all that methods read
    that learn from features. Whatever needs a tower or pixels is refused before (see
    `raydapt.methods.without_images`); what comes here nevertheless is a `UserError`.

    Args:
        features: The class embeddings.
        logit_scale: Factor from cosine to logit; of CLIP's own models it is 100.
    """

    image_spec: Any
    """None: there is no image tower."""
    place: Tensor

    def __init__(self, features: ClassFeatures, *, logit_scale: float) -> None:
        nn.Module.__init__(self)  # not Clip's own, which wants the towers
        self.name, self.identity = NAME, features.identity
        self.features, self.image_spec, self.embed_dim = features, None, features.width
        self.logit_scale = logit_scale
        self.register_buffer("place", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the embeddings are put."""
        return self.place.device

    def class_embeddings(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Class embeddings [C, D], see `ClassFeatures.embeddings`."""
        return torch.from_numpy(self.features.embeddings(class_names, templates)).to(self.device)

    def class_rows(self, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """All vectors [M, D] that stand for the classes, and the class of each, int64 [M]."""
        feature_MD, class_M = self.features.all_rows(class_names)
        return torch.from_numpy(feature_MD).to(self.device), torch.from_numpy(class_M).to(self.device)

    def normalise_pixels(self, pixel_B3SS: Tensor) -> NoReturn:
        """There is no image tower."""
        raise _no_tower("an image tower")

    def encode_image(self, pixel_B3SS: Tensor) -> NoReturn:
        """There is no image tower."""
        raise _no_tower("an image tower")

    def encode_text(self, texts: Sequence[str]) -> NoReturn:
        """There is no text tower."""
        raise _no_tower("a text tower")


def _no_tower(tower: str) -> UserError:
    return UserError(
        f"This needs {tower}, and data.class_features gives class embeddings alone: name the model that made the "
        "features in model.clip."
    )
