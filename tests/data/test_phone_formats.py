"""HEIC and AVIF, as telephones write them: read through Pillow's plugins, with the colours that were written."""

import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydapt.data.decode import decode_rgb
from raydapt.data.sources import read_part, resolve_source
from raydapt.settings.groups import DataSettings


@pytest.mark.parametrize(("kind", "suffix"), [("HEIF", ".heic"), ("HEIF", ".HEIF"), ("AVIF", ".avif")])
def test_pictures_of_telephones(tmp_path: Path, kind: str, suffix: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    pixel = np.zeros((32, 48, 3), np.uint8)
    pixel[:, :24], pixel[:, 24:] = (200, 30, 30), (20, 60, 180)
    sink = io.BytesIO()
    Image.fromarray(pixel).save(sink, kind, quality=95)
    (tmp_path / f"1{suffix}").write_bytes(sink.getvalue())
    source = resolve_source(str(tmp_path), rows_per_part=5)
    row = read_part(source.parts[0], DataSettings()).to_pylist()[0]
    got = np.asarray(decode_rgb(row["image"], max_pixels=10**6, max_bytes=10**7)).astype(int)
    assert (row["error"], got.shape) == (None, pixel.shape)
    for column in (8, 40):
        assert np.abs(got[16, column] - pixel[16, column]).max() < 25
    assert importlib.import_module("raydapt.data.formats").FORMATS
