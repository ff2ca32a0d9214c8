"""What is wrong with the images before anything is learned: unreadable, copies, blank, blurry, of odd shape.

A near copy is an image whose perceptual hash differs in at most `MOST_BITS` of 64 bits from that of an image before it,
and whose feature has a cosine with that one's as neighbours in the set do not have (`least_cosine`). Hashes of simple
drawings meet by chance, and features of aerial photos lie close together; both together hardly ever agree on different
images (docs/own-data.md).

Legend: A all images, H different hashes, P pairs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raydapt.artefacts.features import FeatureTable, load_measures
from raydapt.artefacts.rows import Features, first_values, rows_of
from raydapt.artefacts.words import column_of, words_at
from raydapt.methods.even_sample import even_sample
from raydapt.methods.scores import nearest_images
from raydapt.store.artefact import Artefact
from raydapt.store.run_record import Run

_LOG = logging.getLogger(__name__)
FILE = "data-check.parquet"
MOST_BITS = 4
LEAST_COSINE, SURE_COSINE = 0.95, 0.995
LEAST_CONTRAST = 1.0
"""Grey levels of 256; below, an image is blank."""
LEAST_SHARPNESS = 1 / 3
"""Of the median of the set; below, an image is blurry. How sharp is sharp depends on what the images show."""
LEAST_ASPECT = 0.35
"""Shorter by longer side; below, the crop that a model sees leaves most of an image out (CleanVision's threshold)."""
_WORDS = {"unreadable": "unreadable", "copy": "copies", "near_copy": "near copies", "blank": "blank",
          "blurry": "blurry", "odd_shape": "long and narrow"}  # fmt: skip
KINDS = tuple(_WORDS)
_MOST_HASHES = 200_000
"""Up to here similar hashes are looked for, which takes N^2; beyond, equal ones."""
_EXAMPLES = 5
_SAMPLE = 2048


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What was found.

    Attributes:
        table: One row per image: id, path, split, the measures, a column for each of `KINDS` (``copy`` and
            ``near_copy`` as the path of the image that it is like), and ``cosine`` with that one.
        crossing: Test images that are like an image that is adapted to.
        tests: Test images in all.
    """

    table: pa.Table
    crossing: int
    tests: int

    def counts(self) -> dict[str, int]:
        """Images of every kind; those that nothing is known of have none."""
        return {kind: len(self._of(kind)) for kind in KINDS}

    def sentence(self) -> str | None:
        """What to look at, for a log; None where all is well."""
        found = [f"{_WORDS[kind]} {count:,}" for kind, count in self.counts().items() if count]
        return f"Data check of {self.table.num_rows:,} images: {', '.join(found)} ({FILE})." if found else None

    def notes(self) -> list[str]:
        """What a person must know, before any figure."""
        if not self.crossing:
            return []
        return [
            f"{self.crossing:,} of {self.tests:,} test images are copies, or nearly, of images that were adapted to "
            f"({FILE}): on them the accuracy says nothing of new images."
        ]

    def metrics(self) -> dict[str, Any]:
        """The group ``data_check`` of metrics.json: images of every kind, and some of their paths."""
        paths = self.table["path"]
        examples = {kind: [paths[at].as_py() for at in self._of(kind)[:_EXAMPLES]] for kind in KINDS}
        return {"images": self.counts(), "examples": examples, "crossing": self.crossing}

    def _of(self, kind: str) -> list[int]:
        column = self.table[kind]
        found = pc.fill_null(column, False) if pa.types.is_boolean(column.type) else pc.is_valid(column)
        rows: list[int] = np.flatnonzero(found.to_numpy()).tolist()
        return rows


def check_data(features: Artefact, table: FeatureTable, row_N: Tensor, row_T: Tensor) -> DataCheck:
    """Looks at all images of a source.

    Args:
        features: The artefact that `table` was read from.
        table: Their features.
        row_N: Those that are adapted to.
        row_T: Those that are tested on.
    """
    images = len(table.id_N)
    train_A = np.zeros(images, dtype=bool)
    train_A[row_N.numpy()] = True
    order_A = np.concatenate([np.flatnonzero(train_A), np.flatnonzero(~train_A)])  # what is learned from comes first
    valid_A = table.valid_N.numpy()
    first_A = _copies(table.id_N, order_A)
    first_A[~valid_A] = -1
    near_A, cosine_A = np.full(images, -1), np.full(images, np.nan)
    measures = load_measures(features)
    columns: dict[str, Any] = dict.fromkeys(("blank", "blurry", "odd_shape"), pa.nulls(images, pa.bool_()))
    if measures is not None:
        alone_A = order_A[valid_A[order_A] & (first_A[order_A] < 0)]
        near_A, cosine_A = _near_copies(measures["phash"], table.feature_ND, alone_A)
        columns = {name: pa.array(value_A, from_pandas=True) for name, value_A in measures.items() if name != "phash"}
        columns |= _flaws(measures, valid_A)
    like_A = np.where(first_A >= 0, first_A, near_A)
    test_A = np.zeros(images, dtype=bool)
    test_A[row_T.numpy()] = True
    crossing_A = test_A & ~train_A & (like_A >= 0) & train_A[like_A]
    columns |= {
        "unreadable": pa.array(table.error_N, pa.string()),
        "copy": words_at(table.path_N, first_A),
        "near_copy": words_at(table.path_N, near_A),
        "cosine": pa.array(cosine_A.astype(np.float32), from_pandas=True),
    }
    told = {"id": column_of(table.id_N), "path": column_of(table.path_N), "split": pa.array(table.split_N, pa.string())}
    return DataCheck(table=pa.table(told | columns), crossing=int(crossing_A.sum()), tests=int(test_A.sum()))


def look(record: Run, features: Artefact, table: FeatureTable, row_N: Tensor, row_T: Tensor) -> DataCheck:
    """`check_data`, left in the run's folder and told on the console, before anything is learned."""
    check = check_data(features, table, row_N, row_T)
    record.write_table(FILE, check.table)
    sentence = check.sentence()
    if sentence is not None:
        _LOG.info(sentence)
    return check


def _copies(id_A: Sequence[str], order_A: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first image of the same bytes, by the order; -1 for that one itself."""
    encoded = column_of(id_A).combine_chunks().dictionary_encode()
    number_A = encoded.indices.to_numpy()
    first_I = np.empty(len(encoded.dictionary), np.int64)
    first_I[number_A[order_A[::-1]]] = order_A[::-1]  # of rows with one id, the last that is written is the first one
    like_A = first_I[number_A]
    return np.where(like_A == np.arange(len(id_A)), -1, like_A)


def _near_copies(
    hash_A: npt.NDArray[np.uint64], feature_AD: Features, order_B: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The first image by the order of which each is nearly a copy, -1 for none, and the cosine with it.

    Of images with the same hash the first one stands for all of them.
    """
    near_A, cosine_A = np.full(len(hash_A), -1), np.full(len(hash_A), np.nan)
    hash_H, first_H, group_B = np.unique(hash_A[order_B], return_index=True, return_inverse=True)
    if not len(hash_H):
        return near_A, cosine_A
    like_P, of_P = _similar(hash_H)
    least = least_cosine(rows_of(feature_AD, torch.from_numpy(order_B)))
    likes: dict[int, list[int]] = {}
    for like, of in zip(like_P.tolist(), of_P.tolist(), strict=True):
        likes.setdefault(of, []).append(int(first_H[like]))
    for at in range(len(order_B)):
        group = int(group_B[at])
        for before in sorted([int(first_H[group]), *likes.get(group, [])]):
            if before >= at:
                break
            pair_2D = feature_AD[torch.from_numpy(order_B[[at, before]])]
            cosine = float(pair_2D[0] @ pair_2D[1])
            if cosine >= least:
                near_A[order_B[at]], cosine_A[order_B[at]] = order_B[before], cosine
                break
    return near_A, cosine_A


def least_cosine(feature_BD: Features) -> float:
    """From which cosine on two images are one picture: half-way from the median of nearest neighbours to 1.

    Never below `LEAST_COSINE`, nor above `SURE_COSINE`: among simple drawings, different ones come close to 1.
    """
    sample_SD = feature_BD[even_sample(first_values(feature_BD).argsort(), _SAMPLE)]
    if len(sample_SD) < 2:
        return LEAST_COSINE
    cosine_S = (sample_SD * sample_SD[nearest_images(sample_SD, 1)[:, 0]]).sum(dim=1)
    return min(max(LEAST_COSINE, (1 + float(cosine_S.median())) / 2), SURE_COSINE)


def _similar(hash_H: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs [P] of different hashes that differ in at most `MOST_BITS` bits, each in both orders."""
    if len(hash_H) > _MOST_HASHES:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    import faiss

    code_H8 = hash_H.astype(">u8").view(np.uint8).reshape(-1, 8)
    # Of five bands of twelve bits, four flipped bits leave at least one band as it is: none is missed.
    index = faiss.IndexBinaryMultiHash(64, MOST_BITS + 1, 12)
    index.add(code_H8)
    limit_H, _, like_P = index.range_search(code_H8, MOST_BITS + 1)
    of_P = np.repeat(np.arange(len(hash_H)), np.diff(limit_H.astype(np.int64)))
    other = like_P != of_P
    return like_P[other], of_P[other]


def _flaws(measures: Mapping[str, npt.NDArray[Any]], valid_A: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """Which images are blank, blurry and of odd shape; null where an image cannot be read."""
    blank_A = measures["contrast"] < LEAST_CONTRAST
    seen_A = valid_A & ~blank_A
    usual = float(np.median(measures["sharpness"][seen_A])) if seen_A.any() else 0.0
    found = {
        "blank": blank_A,
        "blurry": seen_A & (measures["sharpness"] < LEAST_SHARPNESS * usual),
        "odd_shape": measures["aspect"] < LEAST_ASPECT,
    }
    return {kind: pa.array(flaw_A, mask=~valid_A) for kind, flaw_A in found.items()}
