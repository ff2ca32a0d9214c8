import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raydapt.artefacts.pixels import pixels_of
from raydapt.data.decode import ImageSpec, decode_image
from raydapt.data.measures import MEASURES
from raydapt.data.sources import read_parts, resolve_source
from raydapt.settings.groups import DataSettings
from raydapt.stages.commit import with_part
from raydapt.stages.reading import decode_table, fixed_binary, pack, unpack
from tests.stages.images import BAD, png, write_images

SPEC = ImageSpec(size_px=8)
DATA = DataSettings()


@pytest.mark.parametrize("rows", [0, 1, 9, 17])
def test_fixed_binary_keeps_bytes_and_nulls(rows: int) -> None:
    value = np.random.default_rng(rows).integers(0, 256, (rows, 3, 4, 4), dtype=np.uint8)
    valid = np.arange(rows) % 3 != 1
    column = fixed_binary(value, valid)
    column.validate(full=True)
    assert column.to_pylist() == [value[i].tobytes() if valid[i] else None for i in range(rows)]
    pixels = pixels_of(pa.table({"pixel": column}))
    np.testing.assert_array_equal(pixels, value)
    np.testing.assert_array_equal(pixels_of(pa.table({"pixel": column}).slice(rows // 2)), value[rows // 2 :])


def test_decoding_keeps_every_row(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.parquet", 20, bad={3: BAD[0], 7: BAD[1], 19: BAD[2]})
    source = resolve_source(str(path), rows_per_part=20)
    ((_, table),) = read_parts(source.parts, DATA)
    decoded = decode_table(table, DATA, SPEC)
    assert decoded["row"].to_pylist() == list(range(20))
    assert [i for i, error in enumerate(decoded["error"].to_pylist()) if error is not None] == [3, 7, 19]
    for index, pixel in enumerate(decoded["pixel"].to_pylist()):
        if index in (3, 7, 19):
            assert pixel is None
        else:
            assert pixel == decode_image(png(index), SPEC, max_pixels=10**6, max_bytes=10**6).tobytes()


def test_measures_are_columns_and_change_nothing_else(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.parquet", 6, bad={2: BAD[0]})
    ((_, table),) = read_parts(resolve_source(str(path), rows_per_part=9).parts, DATA)
    measured = decode_table(table, DATA, SPEC, measured=True)
    assert measured.drop_columns(list(MEASURES)).equals(decode_table(table, DATA, SPEC))
    for name in MEASURES:
        assert measured[name].is_null().to_pylist() == [False, False, True, False, False, False]


def test_limits_reach_the_decoder(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300)).save(buffer, "PNG")
    path = write_images(tmp_path / "a.parquet", 2, bad={1: buffer.getvalue()})
    data = DataSettings(max_image_pixels=80_000)
    ((_, table),) = read_parts(resolve_source(str(path), rows_per_part=2).parts, data)
    assert decode_table(table, data, SPEC)["error"].to_pylist() == [None, "too_many_pixels"]


def test_pack_and_unpack() -> None:
    table = pa.table({"row": [4, 5], "label": ["a", None]})
    part, again = unpack(pack(7, table))
    assert part == 7
    assert again.equals(table)
    assert with_part(table, 7).select(["part", "part_rows"]).to_pydict() == {"part": [7, 7], "part_rows": [2, 2]}
