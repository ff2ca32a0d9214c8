"""Features of all images under a frozen CLIP: each image is encoded once, by a pool of actors.

Legend: N images, B batch, D width of the feature, S image side in px.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from raydapt.artefacts.features import features_recipe
from raydapt.artefacts.pixels import pixels_of
from raydapt.data.decode import ImageSpec
from raydapt.data.decode_on_device import DeviceDecoder
from raydapt.data.sources import Source
from raydapt.errors import UserError
from raydapt.models.frozen import shared_clip
from raydapt.models.peak import Work
from raydapt.settings.groups import StageSettings
from raydapt.stages.commit import committing, with_part, with_work
from raydapt.stages.context import ActorPlan, StageContext, configure, plan_actors, plan_here
from raydapt.stages.inference import ImageEncoder, Inference, Pixels, set_arithmetic
from raydapt.stages.reading import dataset_of_images, decoded_here, part_bytes, unpack
from raydapt.stages.run import Parts, run_stage, stage_of_images
from raydapt.stages.work import DECODE_S, device_kind, encoding_s
from raydapt.store.artefact import StageResult
from raydapt.store.fingerprint import Recipe

if TYPE_CHECKING:
    import ray.data

_BLOCK_BYTES = 1024 * 1024


class Encoder:
    """The actor: a model loaded once, parts of decoded pixels or of JPEGs in, parts of features out."""

    setting = "model.clip"
    """What names the model, for messages."""

    def __init__(
        self,
        clip_name: str,
        clip_identity: str,
        settings: StageSettings,
        plan: ActorPlan,
        *,
        decoder: DeviceDecoder | None = None,
    ) -> None:
        torch.set_num_threads(max(1, int(plan.cpus)))
        device = "cuda" if plan.gpus and torch.cuda.is_available() else "cpu"
        set_arithmetic(settings.arithmetic, torch.device(device))
        self._clip = self.load(clip_name, device)
        if self._clip.identity != clip_identity:
            raise UserError(
                f"Setting {self.setting}={clip_name!r} holds other weights on node {platform.node()!r}, or they "
                "changed meanwhile: give every node the same ones, then run the command again."
            )
        self._batch_size, self._decoder = settings.batch_size, decoder
        size = settings.batch_size if settings.compile else 0
        self.inference = Inference.of(self._clip, torch.device(device), settings.arithmetic, compiled_size=size)

    def load(self, name: str, device: str) -> ImageEncoder:
        """The model of a name."""
        return shared_clip(name, device=device)

    @classmethod
    def image_s(cls, *arguments: Any) -> float:
        """Estimated seconds of an image, from what the actor is made with."""
        return encoding_s(arguments[0])

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encodes one packed part (see `raydapt.stages.reading.pack`)."""
        return self.encode_part(*unpack(batch))

    def encode_part(self, part: int, table: pa.Table) -> pa.Table:
        """Encodes one part, decoded or for the decoder."""
        decoded = self._decoder.decode(table, self.inference.device) if self._decoder else None
        pixel_N3SS = decoded.pixel_N3SS if decoded else pixels_of(table)
        table = decoded.part if decoded else table.drop_columns(["pixel"])
        start, before = time.perf_counter(), self.inference.work.flop
        feature_ND = self.encode(table, pixel_N3SS)
        seconds, work = time.perf_counter() - start, self.inference.work
        result = (decoded.table() if decoded else table).append_column("feature", feature_ND)
        return with_part(with_work(result, seconds, Work(work.flop - before, work.peak_flop_per_s)), part)

    def encode(self, table: pa.Table, pixel_N3SS: Pixels) -> pa.FixedSizeListArray:
        """The column ``feature`` of a part's images."""
        return encode_pixels(self.inference, pixel_N3SS, table["error"].is_null().to_numpy(), self._batch_size)


def encode_pixels(
    inference: Inference, pixel_N3SS: Pixels, valid_N: np.ndarray[Any, Any], batch_size: int
) -> pa.FixedSizeListArray:
    """Features of the valid images as an Arrow column of float32 lists of length D, null for the others."""
    width, chosen_M = inference.encoder.embed_dim, np.flatnonzero(valid_N)
    feature_ND = np.zeros((len(valid_N), width), dtype=np.float32)
    feature_ND[chosen_M] = inference.encode_chosen(pixel_N3SS, chosen_M, batch_size)
    return pa.FixedSizeListArray.from_arrays(pa.array(feature_ND.reshape(-1)), width, mask=pa.array(~valid_N))


def features_stage(
    source: Source, context: StageContext, *, clip_name: str, clip_identity: str, image_spec: ImageSpec
) -> StageResult:
    """Makes the features of a source, or finds them in the store.

    Args:
        source: The images, resolved with ``context.settings.rows_per_part`` and ``data.limit``.
        context: What the stage works with.
        clip_name: Name that the actors load the CLIP by.
        clip_identity: Identity of its weights.
        image_spec: Its image preparation.

    Raises:
        UserError: See `raydapt.stages.run.run_stage`.
    """
    return encoding_stage(
        source,
        context,
        Encoder,
        (clip_name, clip_identity, context.settings),
        recipe=features_recipe(source, clip_identity, image_spec, context.data, stage=context.settings),
        image_spec=image_spec,
        measured=True,
    )


def encoding_stage(
    source: Source,
    context: StageContext,
    encoder: type[Encoder],
    arguments: tuple[Any, ...],
    *,
    recipe: Recipe,
    image_spec: ImageSpec,
    block_bytes: int = _BLOCK_BYTES,
    measured: bool = False,
) -> StageResult:
    """Any stage whose actors hold a CLIP and turn parts of decoded images into features (see `features_stage`).

    Args:
        source: The images.
        context: What the stage works with.
        encoder: The actor's class.
        arguments: What it is made with, before its `ActorPlan`.
        recipe: What the artefact depends on.
        image_spec: How the images are decoded for the actors.
        block_bytes: Largest block of results.
        measured: Whether the rows also tell what each image shows (`raydapt.data.measures`).
    """
    part_of = {part.index: part for part in source.parts}
    settings, ray_settings, for_device = context.settings, context.ray, context.settings.decodes_on_device
    decoder = DeviceDecoder(spec=image_spec, data=context.data, measured=measured) if for_device else None

    def here(pending: Sequence[int]) -> Parts:
        actor: Callable[..., Encoder] = encoder
        encode = actor(*arguments, plan_here(settings, gpu=device_kind() == "cuda"), decoder=decoder).encode_part
        parts = [part_of[index] for index in pending]
        for part, table in decoded_here(parts, context.data, image_spec, measured=measured, for_device=for_device):
            yield part, encode(part, table)

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        from ray.data import ActorPoolStrategy

        from raydapt.cluster.nodes import capacity

        plan = plan_actors(settings, parts=len(pending), ray_settings=ray_settings)
        size = part_bytes(settings.rows_per_part, image_spec)
        cpus = capacity(ray_settings.decode_nodes)["CPU"]
        configure(block_bytes=block_bytes, in_flight_bytes=int((cpus + 4 * plan.actors) * size))
        images = dataset_of_images(
            [part_of[index] for index in pending],
            context.data,
            image_spec,
            rows_per_part=settings.rows_per_part,
            ray_settings=ray_settings,
            measured=measured,
            for_device=for_device,
        )
        encoded = images.map_batches(
            committing(encoder, context.store.artefact_of(recipe)),
            fn_constructor_args=(*arguments, plan),
            fn_constructor_kwargs={"decoder": decoder},
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=plan.actors, max_tasks_in_flight_per_actor=2),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            label_selector=plan.nodes,
        )
        return encoded, plan.actors

    stage = stage_of_images(
        source, context, recipe, dataset_of, here=here, row_s=lambda: DECODE_S + encoder.image_s(*arguments)
    )
    return run_stage(context.store, stage)
