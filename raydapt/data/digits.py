"""The built-in image set: scikit-learn's 1,797 handwritten digits of 8 x 8 px."""

import io
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from raydapt.data.parts import Part, Source, make_rows, new_digest

_TEST_PLACES = (2, 5, 8)
"""Of ten consecutive images of a class these go to the test split: 30 %, stratified, without a random generator."""


class Digits(NamedTuple):
    """All images in scikit-learn's order."""

    images: tuple[bytes, ...]
    """PNG, 8 x 8, grey, 0 to 255."""
    labels: tuple[str, ...]
    """``"0"`` to ``"9"``."""
    splits: tuple[str, ...]
    """``train`` (70 %) or ``test``."""


@lru_cache(maxsize=1)
def load() -> Digits:
    """Reads the images from scikit-learn, once per process."""
    from sklearn.datasets import load_digits  # costs every reader of other sources seconds

    bunch = load_digits()
    seen: dict[int, int] = {}
    images, labels, splits = [], [], []
    for grey_HW, target in zip(bunch.images, bunch.target, strict=True):
        place = seen[target] = seen.get(target, -1) + 1
        buffer = io.BytesIO()
        Image.fromarray(np.rint(grey_HW * (255.0 / 16.0)).astype(np.uint8)).save(buffer, "PNG")
        images.append(buffer.getvalue())
        labels.append(str(target))
        splits.append("test" if place % 10 in _TEST_PLACES else "train")
    return Digits(tuple(images), tuple(labels), tuple(splits))


def plan(*, rows_per_part: int, limit: int | None) -> Source:
    """Plans the parts of the set."""
    everything = load()
    rows = min(len(everything.images), limit or len(everything.images))
    digest = new_digest(rows_per_part, limit)
    digest.update(b"".join(everything.images))
    starts = range(0, rows, rows_per_part)
    parts = tuple(
        Part(index=index, kind="digits", root="digits", start=start, stop=min(start + rows_per_part, rows),
             first_row=start, rows=min(rows_per_part, rows - start))
        for index, start in enumerate(starts)
    )  # fmt: skip
    return Source(
        uri="digits",
        kind="digits",
        parts=parts,
        rows=rows,
        identity=digest.hexdigest(),
        label_counts=tuple(sorted(Counter(everything.labels[:rows]).items())),
        label_names=tuple(sorted(set(everything.labels))),
        has_labels=True,
        splits=("test", "train"),
    )


def read(part: Part, max_bytes: int) -> pa.Table:
    """The rows of a part."""
    images, labels, splits = load()
    rows = slice(part.start, part.stop)
    names = [f"digit-{row:04d}.png" for row in range(part.start, part.stop or 0)]
    return make_rows(part, images[rows], names, labels=labels[rows], splits=splits[rows], max_bytes=max_bytes)
