"""Features of all images and of random crops of them under a frozen CLIP, for what is not learned behind them.

Legend: N images of a part, B batch, K crops of an image, D width of the feature, P stored side in px.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raydapt.artefacts.crops import CropSpec, boxes_of, crops_recipe
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.models.clip import Clip
from raydapt.models.views import crop_view, whole_view
from raydapt.stages.context import StageContext
from raydapt.stages.features import Encoder, encoding_stage
from raydapt.stages.inference import Pixels
from raydapt.stages.work import encoding_s
from raydapt.store.artefact import StageResult

_BLOCK_BYTES = 8 * 1024 * 1024
_IMAGES_PER_BATCH = 32


class CropEncoder(Encoder):
    """The actor of `features_stage`, which encodes each image and behind it its crops."""

    def __init__(self, crops: CropSpec, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._crops = crops

    @property
    def clip(self) -> Clip:
        """The model, which crops have for a CLIP."""
        assert isinstance(self._clip, Clip)
        return self._clip

    @classmethod
    def image_s(cls, *arguments: Any) -> float:
        """Estimated seconds of an image and its crops."""
        crops, clip_name, *_ = arguments
        return encoding_s(clip_name, views=1 + crops.crops)

    def encode(self, table: pa.Table, pixel_N3PP: Pixels) -> pa.FixedSizeListArray:
        """Column ``feature``: (1 + K) D numbers a row, null for images in error."""
        valid_N = table["error"].is_null().to_numpy()
        ids = table["id"].to_pylist()
        feature_NKD = np.zeros((len(ids), 1 + self._crops.crops, self._clip.embed_dim), dtype=np.float32)
        chosen_M = np.flatnonzero(valid_N)
        batches = self.inference.batches(pixel_N3PP, chosen_M, _IMAGES_PER_BATCH)
        for start, pixel_B3PP in zip(range(0, len(chosen_M), _IMAGES_PER_BATCH), batches, strict=True):
            index_B = chosen_M[start : start + _IMAGES_PER_BATCH]
            box_BK4 = boxes_of([ids[index] for index in index_B], self._crops)
            feature_BKD = encode_with_crops(self.clip, pixel_B3PP, box_BK4, self.inference.encode)
            feature_NKD[index_B] = feature_BKD.cpu().numpy()
        self.inference.require_finite(feature_NKD)
        width = feature_NKD.shape[1] * feature_NKD.shape[2]
        return pa.FixedSizeListArray.from_arrays(pa.array(feature_NKD.reshape(-1)), width, mask=pa.array(~valid_N))


@torch.inference_mode()
def encode_with_crops(
    clip: Clip, pixel_B3PP: Tensor, box_BK4: Tensor, encode: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Features [B, 1 + K, D] of whole images and their crops, all in one batch.

    Args:
        clip: The model.
        pixel_B3PP: uint8 pixels as they are stored.
        box_BK4: Where the crops are.
        encode: How its images are encoded; by itself where left out.
    """
    side = clip.image_spec.size_px
    views = torch.cat([whole_view(pixel_B3PP, side), crop_view(pixel_B3PP, box_BK4, side)])
    feature_MD = (encode or clip.encode_image)(views)
    whole_BD, crop_MD = feature_MD[: len(pixel_B3PP)], feature_MD[len(pixel_B3PP) :]
    return torch.cat([whole_BD[:, None], crop_MD.view(len(pixel_B3PP), -1, whole_BD.shape[1])], dim=1)


def crops_stage(
    source: Source,
    context: StageContext,
    *,
    clip_name: str,
    clip_identity: str,
    image_spec: ImageSpec,
    crops: CropSpec,
) -> StageResult:
    """Encodes a source's images and their crops, or finds them in the store (see `features_stage`).

    Args:
        source: The images.
        context: What the stage works with.
        clip_name: Name that the actors load the CLIP by.
        clip_identity: Identity of its weights.
        image_spec: How images are stored before they are cut, larger than the model takes them.
        crops: Which crops are taken.
    """
    return encoding_stage(
        source,
        context,
        CropEncoder,
        (crops, clip_name, clip_identity, context.settings),
        recipe=crops_recipe(source, clip_identity, image_spec, context.data, crops, stage=context.settings),
        image_spec=image_spec,
        block_bytes=_BLOCK_BYTES,
    )
