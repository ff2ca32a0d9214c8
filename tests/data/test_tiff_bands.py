"""TIFF files of many bands and wide numbers: never a black picture, and the bands that people would look at."""

import io
import sys

import numpy as np
import pytest

from raydapt.data.decode import BadImage, decode_rgb
from raydapt.data.tiff_bands import NEEDS_EXTRA, read_bands

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)


def tiff(value: np.ndarray, **how: object) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, value, **{"photometric": "minisblack"} | how)
    return sink.getvalue()


def pixels(data: bytes, most: int = 10**6) -> np.ndarray:
    return np.asarray(decode_rgb(data, max_pixels=most, max_bytes=10**7)).astype(int)


@pytest.mark.parametrize("bands", [3, 5, 12, 13])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bits", [12, 16])
def test_bands_of_satellites(bands: int, planar: str, bits: int) -> None:
    value = RNG.integers(0, 2**bits, (9, 7, bands))
    shown = value[..., [3, 2, 1] if bands > 5 else [0, 1, 2]].astype(float)
    shown[0, 0] = value[0, 0, :3] = value[0, 0, 3:4] = 2**bits - 1
    value = value.astype(np.uint16)
    stored = value if planar == "contig" else np.moveaxis(value, -1, 0)
    got = pixels(tiff(stored, planarconfig=planar))
    assert np.array_equal(got, np.rint(shown * 255 / (2**bits - 1)))


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd"])
def test_colours_plane_by_plane(compression: str | None) -> None:
    value = RNG.integers(0, 4096, (3, 9, 7)).astype(np.uint16)
    value[0, 0, 0] = 4095
    got = pixels(tiff(value, photometric="rgb", planarconfig="separate", compression=compression))
    assert np.array_equal(got, np.rint(np.moveaxis(value, 0, -1) * 255.0 / 4095))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_of_three_bands(dtype: type) -> None:
    value = RNG.random((9, 7, 3)).astype(dtype)
    assert np.abs(pixels(tiff(value, photometric="rgb")) - value * 255).max() <= 0.5
    value[0, 0] = np.nan
    far = value * 5000
    low, high = np.nanmin(far), np.nanmax(far)
    got = pixels(tiff(far, photometric="rgb"))
    assert np.abs(got[1:] - (far[1:] - low * (high > 1)) * 255 / (high - low)).max() <= 6
    assert got.mean() > 60


def test_wide_whole_numbers_of_several_bands() -> None:
    value = RNG.integers(0, 4096, (9, 7, 3)).astype(np.uint32)
    value[0, 0, 0] = 4095
    assert np.array_equal(pixels(tiff(value, photometric="rgb")), np.rint(value * 255 / 4095))
    one = RNG.random((9, 7))
    assert np.abs(pixels(tiff(one)) - one[..., None] * 255).max() <= 0.5


def test_pixels_without_data_do_not_darken_the_rest() -> None:
    value = RNG.random((9, 7, 3)).astype(np.float32)
    value[0, 0] = -9999.0
    got = pixels(tiff(value, photometric="rgb", extratags=[(42113, 2, 6, "-9999", True)]))
    assert np.abs(got[1:] - value[1:] * 255).max() <= 0.5


def test_orientation_limits_and_broken_files() -> None:
    value = RNG.integers(0, 4096, (9, 7, 5)).astype(np.uint16)
    turned = pixels(tiff(value, planarconfig="contig", extratags=[(274, 3, 1, 6, True)]))
    assert np.array_equal(turned, np.rot90(pixels(tiff(value, planarconfig="contig")), -1))
    with pytest.raises(BadImage, match="too_many_pixels"):
        pixels(tiff(value, planarconfig="contig"), most=62)
    with pytest.raises(BadImage, match=r"corrupt|not_an_image"):
        pixels(tiff(value, planarconfig="contig", compression="zlib")[:-300])
    with pytest.raises(BadImage):
        pixels(b"II*\0" + bytes(100))


def test_without_the_package_the_row_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(BadImage) as caught:
        pixels(tiff(RNG.integers(0, 9, (9, 7, 5)).astype(np.uint16), planarconfig="contig"))
    assert caught.value.reason == NEEDS_EXTRA == "needs raydapt[tiff]"
    assert read_bands.__doc__
