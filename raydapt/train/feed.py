"""What the steps of a round are fed with: batches of its streams, and of pixels a step ahead of the one that asks.

Pixels that do not fit in memory are read from the store window by window: the next one while this one is learned from.

Legend: M images of a stream, W of a window, B batch, C classes, S image side in px.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from raydapt.artefacts.inputs import InputKind
from raydapt.artefacts.pixels import PixelRows, StoredPixels
from raydapt.methods.contract import Batch, Stream, TrainingImages
from raydapt.methods.targets import batch_of
from raydapt.settings.groups import TrainSettings
from raydapt.train.place import WorkerContext
from raydapt.train.sampling import BlockOrder, StreamOrder


class Feeds:
    """The batches of all streams of one round, on one worker."""

    def __init__(
        self,
        streams: Sequence[Stream],
        images: TrainingImages,
        input_kind: InputKind,
        settings: TrainSettings,
        place: WorkerContext,
        *,
        seed: int,
        round_: int,
        total: int,
    ) -> None:
        """Reads nothing yet.

        Args:
            streams: Of the round.
            images: What the streams draw from.
            input_kind: What the method takes for an image.
            settings: `cache_gb` is shared by the streams whose pixels are in the store.
            place: Rank and device.
            seed: Decides, with the round, the order of the images.
            round_: See ``seed``.
            total: Steps of the round.
        """
        self._streams, self._device, self._total = streams, place.device, total
        stored = {s.name: _stored(images, s) if input_kind == "pixels" else None for s in streams}
        share_bytes = settings.cache_gb * 1e9 / max(1, sum(rows is not None for rows in stored.values()))
        self._feeds: dict[str, _Feed] = {}
        for stream in streams:
            plain = _PlainFeed(stream, images, input_kind, place, seed=seed, round_=round_)
            rows = stored[stream.name]
            self._feeds[stream.name] = (
                plain if rows is None else _StoredFeed(plain, stream, rows, share_bytes, place, seed, round_, total)
            )
        self._thread = ThreadPoolExecutor(1) if input_kind == "pixels" else None
        self._ahead: tuple[int, Future[dict[str, Batch]]] | None = None

    def batches(self, step: int) -> dict[str, Batch]:
        """This worker's part of every stream's batch of a 0-based step, on its device."""
        gathered = self._gather(step) if self._thread is None else self._gathered_ahead(step)
        return {name: self._moved(batch) for name, batch in gathered.items()}

    def close(self) -> None:
        """Ends the threads."""
        for feed in self._feeds.values():
            feed.close()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _gathered_ahead(self, step: int) -> dict[str, Batch]:
        ahead = self._ahead if self._ahead is not None and self._ahead[0] == step else self._begin(step)
        gathered = ahead[1].result()
        self._ahead = self._begin(step + 1) if step + 1 < self._total else None
        return gathered

    def _begin(self, step: int) -> tuple[int, Future[dict[str, Batch]]]:
        assert self._thread is not None
        return step, self._thread.submit(self._gather, step)

    def _gather(self, step: int) -> dict[str, Batch]:
        batches = {}
        for stream in self._streams:
            position_B, image_B = self._feeds[stream.name].take(step)
            target_BC = batch_of(stream.target_MC, position_B)
            batch = Batch(image_B=image_B, target_BC=target_BC, index_B=stream.index_M[position_B])
            batches[stream.name] = batch if self._thread is None else _pinned(batch, self._device)
        return batches

    def _moved(self, batch: Batch) -> Batch:
        return Batch(
            image_B=batch.image_B.to(self._device, non_blocking=True),
            target_BC=batch.target_BC.to(self._device, non_blocking=True),
            index_B=batch.index_B,
        )


def _pinned(batch: Batch, device: torch.device) -> Batch:
    """The batch where the card can fetch it while it computes."""
    if device.type != "cuda":
        return batch
    return Batch(image_B=batch.image_B.pin_memory(), target_BC=batch.target_BC.pin_memory(), index_B=batch.index_B)


def _stored(images: TrainingImages, stream: Stream) -> PixelRows | None:
    """The pixels that a stream draws from, if they are not in memory."""
    rows = images.pixel_rows(stream.source)
    return rows if rows is not None and isinstance(rows.pixel_R3SS, StoredPixels) else None


class _Feed(Protocol):
    def take(self, step: int) -> tuple[Tensor, Tensor]:
        """Positions within the stream [B], and the images [B, ...]."""

    def close(self) -> None:
        """Ends what it began."""


class _PlainFeed:
    """From memory, in an order that mixes all images of the stream."""

    def __init__(
        self,
        stream: Stream,
        images: TrainingImages,
        input_kind: InputKind,
        place: WorkerContext,
        *,
        seed: int,
        round_: int,
    ) -> None:
        self._stream, self._images, self._kind, self._place = stream, images, input_kind, place
        self._order = StreamOrder(len(stream.index_M), stream.batch_size, seed=seed, round_=round_, name=stream.name)

    def positions(self, step: int) -> Tensor:
        return self._order.positions(step, rank=self._place.rank, world=self._place.world)

    def take(self, step: int) -> tuple[Tensor, Tensor]:
        position_B = self.positions(step)
        return position_B, self._images.take(self._stream.index_M[position_B], self._kind, self._stream.source)

    def close(self) -> None:
        pass


class _StoredFeed:
    """From the store, a window at a time; a stream that fits is one window, in the order that memory would give."""

    def __init__(
        self,
        plain: _PlainFeed,
        stream: Stream,
        rows: PixelRows,
        share_bytes: float,
        place: WorkerContext,
        seed: int,
        round_: int,
        total: int,
    ) -> None:
        assert isinstance(rows.pixel_R3SS, StoredPixels)
        self._plain, self._pixels, self._total = plain, rows.pixel_R3SS, total
        self._row_M = rows.row_N[stream.index_M]
        self._order: BlockOrder | None = None
        if len(self._row_M) * self._pixels.row_bytes > share_bytes:
            self._order = BlockOrder(
                self._pixels.block_of(self._row_M),
                stream.batch_size,
                window_images=int(share_bytes / 2 / self._pixels.row_bytes),  # this window, and the next
                seed=seed,
                round_=round_,
                name=stream.name,
                rank=place.rank,
                world=place.world,
            )
        self._thread = ThreadPoolExecutor(1)
        self._name: tuple[int, int] | None = None
        self._pixel_W3SS = torch.empty(0)
        self._ahead: tuple[tuple[int, int], Future[Tensor]] | None = None

    def take(self, step: int) -> tuple[Tensor, Tensor]:
        name, position_W = self._window(step)
        if name != self._name:
            ahead = self._ahead if self._ahead is not None and self._ahead[0] == name else self._begin(step)
            self._pixel_W3SS, self._name, self._ahead = ahead[1].result(), name, None
            if self._order is not None and (after := self._order.next_window(step)) < self._total:
                self._ahead = self._begin(after)
        place_B = self._plain.positions(step) if self._order is None else self._order.within(step)
        return position_W[place_B], self._pixel_W3SS[place_B]

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _window(self, step: int) -> tuple[tuple[int, int], Tensor]:
        if self._order is None:
            return (0, 0), torch.arange(len(self._row_M))
        return self._order.window(step)

    def _begin(self, step: int) -> tuple[tuple[int, int], Future[Tensor]]:
        name, position_W = self._window(step)
        return name, self._thread.submit(self._pixels.__getitem__, self._row_M[position_W])
