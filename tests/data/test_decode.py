import io
import warnings

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from raydapt.data.decode import BAD_IMAGE_REASONS, BadImage, ImageSpec, decode_image, image_id
from tests.data.images import encode, noise, png, png_header

LIMITS = {"max_pixels": 1_000_000, "max_bytes": 10_000_000}


def pixels(data: bytes, size_px: int = 16, **options: str) -> np.ndarray:
    return decode_image(data, ImageSpec(size_px=size_px, **options), **LIMITS)


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode_image(data, ImageSpec(size_px=16), **{**LIMITS, **limits})
    assert caught.value.reason in BAD_IMAGE_REASONS
    return caught.value.reason


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size", [(64, 64), (32, 32), (50, 33), (33, 50), (17, 90), (8, 8), (31, 32), (100, 7), (32, 45)]
)
def test_pixels_are_those_of_open_clip(mode: str, interpolation: str, size: tuple[int, int]) -> None:
    image = noise(*size, seed=sum(size))
    cfg = PreprocessCfg(size=32, resize_mode=mode, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1))
    expected = image_transform_v2(cfg, is_train=False)(image)
    got = pixels(encode(image), 32, resize_mode=mode, interpolation=interpolation)
    assert got.dtype == np.uint8
    assert got.shape == (3, 32, 32)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, np.rint(expected.numpy() * 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_the_allowed_formats(kind: str) -> None:
    image = Image.new("RGB", (20, 16), (200, 30, 60))
    got = pixels(encode(image, kind))
    assert np.abs(got.astype(int) - np.array([200, 30, 60])[:, None, None]).max() <= 4


@pytest.mark.parametrize("kind", ["ICO", "PDF", "TGA", "PCX", "SGI"])
def test_other_formats_are_not_images(kind: str) -> None:
    assert reason(encode(noise(16, 16), kind)) == "not_an_image"


def test_bad_bytes() -> None:
    jpeg = encode(noise(64, 64), "JPEG")
    assert reason(b"") == "empty"
    assert reason(b"just some text, named .jpg by mistake") == "not_an_image"
    assert reason(jpeg[: len(jpeg) // 2]) == "corrupt"
    assert reason(png(0, 64)[:-30]) == "corrupt"
    assert reason(jpeg, max_bytes=100) == "too_many_bytes"
    assert reason(jpeg, max_pixels=64 * 63) == "too_many_pixels"
    assert pixels(jpeg).shape == (3, 16, 16)


@pytest.mark.parametrize("size", [(30_000, 30_000), (2_000_000_000, 2), (11_000, 11_000)])
def test_huge_images_are_refused_by_their_header(size: tuple[int, int]) -> None:
    assert reason(png_header(*size)) == "too_many_pixels"


def test_a_long_thin_image_is_refused_before_it_grows() -> None:
    assert reason(encode(Image.new("1", (1, 90_000)))) == "too_many_pixels"
    assert pixels(encode(Image.new("L", (1, 90_000), 7)), resize_mode="squash").max() == 7
    assert pixels(encode(Image.new("L", (1, 90_000), 7)), resize_mode="longest").shape == (3, 16, 16)


def test_random_damage_is_an_image_or_a_reason_and_never_a_warning() -> None:
    generator = np.random.default_rng(0)
    outcomes = set()
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encode(noise(24, 24), kind)
        for _ in range(60):
            data = bytearray(whole[: generator.integers(1, len(whole) + 1)])
            for place in generator.integers(0, len(data), 3):
                data[place] = generator.integers(0, 256)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    outcomes.add(decode_image(bytes(data), ImageSpec(size_px=8), **LIMITS).shape)
                except BadImage as bad:
                    outcomes.add(bad.reason)
    assert {(3, 8, 8), "corrupt", "not_an_image"} <= outcomes


def test_grey_palette_and_bilevel() -> None:
    grey = noise(16, 16, mode="L")
    np.testing.assert_array_equal(pixels(encode(grey)), np.broadcast_to(np.asarray(grey), (3, 16, 16)))
    palette = noise(16, 16).quantize(7)
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels(encode(palette)), expected)
    bilevel = grey.convert("1")
    assert set(np.unique(pixels(encode(bilevel)))) == {0, 255}


def test_transparency_is_over_white() -> None:
    rgba = Image.new("RGBA", (16, 16), (200, 100, 0, 0))
    assert pixels(encode(rgba)).min() == 255
    half = Image.new("RGBA", (16, 16), (200, 100, 0, 51))
    np.testing.assert_allclose(pixels(encode(half))[:, 0, 0], [0.8 * 255 + 0.2 * c for c in (200, 100, 0)], atol=1)
    assert pixels(encode(Image.new("LA", (16, 16), (0, 0)))).min() == 255
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30])
    assert pixels(encode(palette, transparency=0)).min() == 255
    assert pixels(encode(Image.new("RGB", (16, 16), (9, 9, 9)), transparency=(9, 9, 9))).min() == 255


def test_16_bit_grey_is_scaled() -> None:
    value = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    expected = [[round(int(v) * 255 / 65535) for v in row] for row in value]
    for kind in ("PNG", "TIFF"):
        got = pixels(encode(Image.fromarray(value), kind))
        np.testing.assert_array_equal(got, np.broadcast_to(np.array(expected), (3, 16, 16)))


def test_wide_number_types_are_scaled() -> None:
    unit = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    expected = np.rint(unit * 255)
    for value in (unit, unit * 5000 - 1000, (unit * 1e6 - 7).astype(np.int32)):
        got = pixels(encode(Image.fromarray(value), "TIFF"))[0]
        assert np.abs(got - expected).max() <= 1
    constant = np.full((16, 16), np.nan, np.float32)
    assert pixels(encode(Image.fromarray(constant), "TIFF")).max() == 0


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    got = pixels(encode(image, "JPEG", quality=95))[:, 8, 8].astype(int)
    assert np.abs(got - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8, 0] = 255
    upright[:8, 8:, 1] = 255
    stored = {
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }
    image = Image.fromarray(np.ascontiguousarray(stored.get(orientation, lambda a: a)(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    got = pixels(encode(image, kind, exif=exif, **options)).transpose(1, 2, 0)
    assert np.abs(got.astype(int) - upright).mean() < 3


def test_broken_exif_does_not_spoil_the_image() -> None:
    data = encode(Image.new("RGB", (16, 16), "red"), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert pixels(data)[0].min() > 250


def test_of_several_frames_the_first_counts() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(buffer.getvalue())[:, 0, 0], [255, 0, 0])


def test_specs_that_cannot_be_done_are_refused() -> None:
    for options in ({"resize_mode": "crop"}, {"interpolation": "random"}):
        with pytest.raises(ValueError, match="preprocessing"):
            ImageSpec(size_px=8, **options)


def test_image_id_is_of_the_content() -> None:
    assert image_id(b"abc") == image_id(b"abc") != image_id(b"abd")
    assert len(image_id(b"")) == 16
    assert int(image_id(b"abc"), 16) >= 0
