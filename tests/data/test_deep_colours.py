import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from raydapt.data.decode import decode_rgb
from raydapt.data.deep_colours import to_8_bits
from tests.data.images import encode


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_rgb(data, max_pixels=10**6, max_bytes=10**7)).astype(int)


def png16(a: np.ndarray) -> bytes:
    height, width, channels = a.shape
    rows = b"".join(b"\0" + a[y].astype(">u2").tobytes() for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(a: np.ndarray, order: str = "<", *, deflate: bool = False) -> bytes:
    height, width, channels = a.shape
    data = a.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflate else data
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, None), (259, 3, 1, 8 if deflate else 1)]
    entries += [(262, 3, 1, 2), (273, 4, 1, None), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data))]
    entries += [(284, 3, 1, 1)] + ([(338, 3, 1, 2)] if channels == 4 else [])
    bits_at = 8 + 2 + 12 * len(entries) + 4
    values = {258: bits_at, 273: bits_at + 2 * channels}
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        number = values.get(tag, value)
        short = kind == 3 and count == 1
        out += struct.pack(order + ("HHIHH" if short else "HHII"), tag, kind, count, number, *([0] if short else []))
    return out + struct.pack(order + "I", 0) + struct.pack(order + "H" * channels, *[16] * channels) + data


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_every_depth_in_16_bits(bits: int, channels: int) -> None:
    top = 2**bits - 1
    value = np.random.default_rng(bits).integers(0, top + 1, (9, 7, channels))
    value[0, 0, 0] = top
    value[..., 3:] = 65535
    expected = np.rint(value[..., :3] * 255 / top)
    files = [png16(value)] + [tiff16(value, order, deflate=z) for order in "<>" for z in (False, True)]
    for data in files:
        assert np.abs(pixels(data) - expected).max() <= (1 if channels == 4 else 0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_grey_of_every_depth(bits: int, dtype: type) -> None:
    value = np.linspace(0, 2**bits - 1, 256).astype(dtype).reshape(16, 16)
    expected = np.rint(value * (255 / (2**bits - 1)))
    for kind in ("PNG", "TIFF") if dtype is np.uint16 else ("TIFF",):
        assert np.abs(pixels(encode(Image.fromarray(value), kind))[..., 0] - expected).max() <= 1


def test_a_wide_image_is_turned_as_it_says() -> None:
    value = np.zeros((4, 6, 3), int)
    value[:, :3] = 4095
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png16(value)
    tag = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(tag)) + b"eXIf" + tag + struct.pack(">I", zlib.crc32(b"eXIf" + tag))
    turned = pixels(data[:33] + chunk + data[33:])
    assert turned.shape == (6, 4, 3)
    assert turned[0].min() == 255
    assert turned[-1].max() == 0


def test_numbers_beyond_any_bits_take_their_own_range() -> None:
    assert to_8_bits(np.array([[-5, 5]]), "I").tolist() == [[0, 255]]
    assert to_8_bits(np.array([[0.0, 0.5]]), "F").tolist() == [[0, 128]]
    assert to_8_bits(np.array([[0, 1 << 20]]), "I").tolist() == [[0, 255]]
    assert to_8_bits(np.zeros((1, 1)), "I").tolist() == [[0]]


def test_a_broken_wide_image_is_corrupt() -> None:
    from raydapt.data.decode import BadImage

    whole = png16(np.random.default_rng(0).integers(0, 4096, (9, 7, 3)))
    for length in (len(whole) - 40, 60):
        with pytest.raises(BadImage):
            pixels(whole[:length])
