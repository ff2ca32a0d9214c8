"""Vectors as others store them, turned into unit vectors: every fault is a row's own.

Legend: N rows, D width.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

NO_VECTOR, ZERO_VECTOR, NOT_FINITE, WRONG_WIDTH = "no_vector", "zero_vector", "not_finite", "wrong_width"
BAD_VECTOR_REASONS = (NO_VECTOR, ZERO_VECTOR, NOT_FINITE, WRONG_WIDTH)
_UNIT_TOLERANCE = 1e-6
"""Vectors this close to unit length stay as they are: what raydapt wrote itself comes back bit for bit."""


class Vectors(NamedTuple):
    """N vectors of unit length, and what is wrong with the others."""

    vector_ND: npt.NDArray[np.float32]
    """Unit vectors; zeros where there is an error."""
    errors: list[str | None]
    """One of `BAD_VECTOR_REASONS`; None for a vector that can be used."""


def unit_vectors(value_ND: npt.NDArray[Any], errors: list[str | None] | None = None) -> Vectors:
    """Normalises the rows of an array of floats.

    Args:
        value_ND: float16, float32 or float64; it is not changed.
        errors: What is known already to be wrong with a row, N entries.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # faults of the data get their reasons below
        # A copy, as float64 so that the squares of large and of tiny values neither overflow nor vanish.
        wide_ND = value_ND.astype(np.float64)
        length_N = np.sqrt(np.square(wide_ND).sum(axis=1))
        unit_N = np.abs(length_N - 1) <= _UNIT_TOLERANCE
        wide_ND[~unit_N] /= length_N[~unit_N, None]
    found: list[str | None] = [None] * len(value_ND) if errors is None else list(errors)
    for row in np.flatnonzero(~(np.isfinite(length_N) & (length_N > 0))):
        found[row] = found[row] or (NOT_FINITE if length_N[row] != 0 else ZERO_VECTOR)
    vector_ND = wide_ND.astype(np.float32)
    vector_ND[[error is not None for error in found]] = 0
    return Vectors(vector_ND, found)


def vectors_of_column(column: pa.Array, width: int) -> Vectors:
    """The unit vectors of a column of lists.

    Args:
        column: A list, large list or fixed-size list of floats (see `holds_vectors`).
        width: How many values a row must have.
    """
    length_N = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    errors: list[str | None] = [None] * len(column)
    for row in np.flatnonzero(length_N != width):
        errors[row] = NO_VECTOR if length_N[row] < 0 else WRONG_WIDTH
    good_N = length_N == width
    value_ND = np.zeros((len(column), width), dtype=column.type.value_type.to_pandas_dtype())
    values = column.filter(pa.array(good_N)).flatten()
    value_ND[good_N] = values.to_numpy(zero_copy_only=False).reshape(-1, width)  # a null value becomes NaN
    return unit_vectors(value_ND, errors)


def holds_vectors(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of floats."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))
