"""`features.decode=device`: the same rows are answered and the same are in error as Pillow's way, with near features.

On this machine the device is the CPU, where torchvision decodes by libjpeg-turbo; the code is that of a GPU.
"""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydapt.artefacts.crops import CropSpec, load_crops
from raydapt.artefacts.features import features_recipe, load_features, load_measures
from raydapt.data import decode_on_device
from raydapt.data.decode import BadImage, ImageSpec, decode_measured, plain_jpeg_px
from raydapt.data.decode_on_device import DeviceDecoder, decode_jpegs
from raydapt.data.measures import MEASURES
from raydapt.data.sources import Source, read_part, resolve_source
from raydapt.methods.configuration import load_config
from raydapt.models.clip import clip_identity
from raydapt.models.frozen import shared_clip
from raydapt.run.plan import make_plan
from raydapt.settings.groups import DataSettings, RaySettings, StageSettings
from raydapt.stages import work
from raydapt.stages.context import StageContext
from raydapt.stages.crops import crops_stage
from raydapt.stages.features import features_stage
from raydapt.stages.reading import decode_table
from raydapt.store.artefact import Artefact, Shard, StageResult, Store

MOST = {"max_pixels": 200_000, "max_bytes": 200_000}
DATA = DataSettings(max_error_share=0.4, max_image_pixels=MOST["max_pixels"], max_image_bytes=MOST["max_bytes"])
HERE = RaySettings(progress=False)
ON_DEVICE = StageSettings(rows_per_part=16, batch_size=7, decode="device")
BY_PILLOW = replace(ON_DEVICE, decode="cpu")
CPU = torch.device("cpu")
LEAST_COSINE = 0.9999


def photo(seed: int, width: int = 90, height: int = 70) -> Image.Image:
    """Smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def broken_tables(jpeg: bytes) -> bytes:
    """A JPEG with a whole header and end whose code tables no decoder takes."""
    at = jpeg.index(b"\xff\xc4") + 5
    return jpeg[:at] + b"\xff" * 16 + jpeg[at + 16 :]


PLAIN = {
    "baseline": encoded(photo(0)),
    "no subsampling": encoded(photo(1), subsampling=0),
    "progressive": encoded(photo(2), progressive=True),
    "grey": encoded(photo(3).convert("L")),
    "upright by its EXIF": encoded(photo(4), exif=turned(1)),
    "smaller than the model's": encoded(photo(5, 17, 11)),
    "long": encoded(photo(6, 400, 20)),
    "broken tables": broken_tables(encoded(photo(7))),
}
"""What the header says to be plain; the last one turns out not to be."""
OTHER = {
    "CMYK": encoded(photo(10).convert("CMYK")),
    "RGB in a JPEG": encoded(photo(11), keep_rgb=True),
    "turned by its EXIF": encoded(photo(12), exif=turned(6)),
    "several frames": encoded(photo(13), "MPO", save_all=True, append_images=[photo(14)]),
    "words behind it": encoded(photo(15)) + b" and more",
    "PNG": encoded(photo(16), "PNG"),
    "transparent PNG": encoded(photo(17).convert("LA"), "PNG"),
    "WebP": encoded(photo(18), "WEBP"),
    "cut off": encoded(photo(19))[:1000],
    "without an end": encoded(photo(20))[:-2],
    "too many pixels": encoded(photo(21, 500, 500)),
    "too many pixels once resized": encoded(photo(22, 3000, 2)),
    "too many bytes": encoded(photo(23)) + bytes(MOST["max_bytes"]) + b"\xff\xd9",
    "words": b"these are words",
    "nothing": b"",
}
ROWS = [*PLAIN.values(), *OTHER.values(), *(encoded(photo(100 + seed)) for seed in range(25))]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("images") / "a.parquet"
    pq.write_table(pa.table({"image": ROWS, "label": [f"class {row % 3}" for row in range(len(ROWS))]}), path)
    return resolve_source(str(path), rows_per_part=ON_DEVICE.rows_per_part)


def make(source: Source, store: Path, settings: StageSettings, ray: RaySettings = HERE) -> StageResult:
    return features_stage(
        source,
        StageContext(store=Store(str(store)), ray=ray, settings=settings, data=DATA),
        clip_name="mini",
        clip_identity=clip_identity("mini"),
        image_spec=shared_clip("mini").image_spec,
    )


@pytest.fixture(scope="module")
def both(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, StageResult]:
    """By Pillow and on the device, in one store."""
    store = tmp_path_factory.mktemp("store")
    return make(source, store, BY_PILLOW), make(source, store, ON_DEVICE)


@pytest.mark.parametrize("name", [*PLAIN, *OTHER])
def test_the_header_tells_what_any_decoder_reads_alike(name: str) -> None:
    spec = shared_clip("mini").image_spec
    px = plain_jpeg_px((PLAIN | OTHER)[name], spec, **MOST)
    if name in PLAIN:
        with Image.open(io.BytesIO(PLAIN[name])) as image:
            assert px == image.width * image.height
    else:
        assert px is None


def test_the_same_rows_are_answered_and_the_same_are_in_error(both: tuple[StageResult, StageResult]) -> None:
    pillow, device = (load_features(result.artefact) for result in both)
    assert not both[1].reused
    assert both[0].artefact.fingerprint != both[1].artefact.fingerprint
    assert both[0].artefact.manifest.errors == both[1].artefact.manifest.errors
    assert both[1].artefact.manifest.errors == {
        "corrupt": 3, "too_many_pixels": 2, "too_many_bytes": 1, "not_an_image": 1, "empty": 1
    }  # fmt: skip
    assert pillow.error_N == device.error_N
    assert pillow.row_N.tolist() == device.row_N.tolist() == list(range(len(ROWS)))
    assert list(pillow.id_N) == list(device.id_N)
    assert pillow.valid_N.tolist() == device.valid_N.tolist()
    cosine_N = (pillow.feature_ND[:] * device.feature_ND[:]).sum(dim=1)
    assert float(cosine_N[pillow.valid_N].min()) > LEAST_COSINE
    assert not device.feature_ND[:][~device.valid_N].any()
    first = [next(artefact.artefact.iter_tables([])) for artefact in both]
    assert first[0].schema == first[1].schema


def test_what_pillow_decodes_has_pillows_features_and_measures(both: tuple[StageResult, StageResult]) -> None:
    pillow, device = (load_features(result.artefact) for result in both)
    row_M = [row for row in range(len(PLAIN), len(PLAIN) + len(OTHER)) if pillow.valid_N[row]]
    assert len(row_M) == 8
    torch.testing.assert_close(pillow.feature_ND[:][row_M], device.feature_ND[:][row_M], rtol=0, atol=1e-5)
    measures = [load_measures(result.artefact) for result in both]
    assert measures[0] is not None
    assert measures[1] is not None
    for name in MEASURES:
        np.testing.assert_array_equal(measures[0][name][row_M], measures[1][name][row_M])
    for name, bound in (("aspect", 0.0), ("contrast", 0.5), ("sharpness", 0.01)):
        np.testing.assert_allclose(measures[0][name], measures[1][name], rtol=0, atol=bound)
    bits_N = np.bitwise_count(measures[0]["phash"] ^ measures[1]["phash"])
    assert bits_N.max() <= 8  # coefficients beside their median


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize(("width", "height"), [(90, 70), (31, 64), (32, 32), (400, 20), (17, 11), (33, 500)])
def test_pixels_are_pillows_but_for_rounding(interpolation: str, mode: str, width: int, height: int) -> None:
    spec = ImageSpec(size_px=32, resize_mode=mode, interpolation=interpolation)
    image = encoded(photo(width, width, height))
    expected, measures = decode_measured(image, spec, **MOST)
    table = pa.table({"image": pa.array([image], pa.large_binary()), "error": pa.array([None], pa.string())})
    left = decode_table(table, DATA, spec, measured=True, for_device=True)
    assert left["pixel"].null_count == left["image"].is_valid().to_pylist().count(True) == 1
    found = DeviceDecoder(spec=spec, data=DATA, measured=True).decode(left, CPU)
    told = found.table()
    assert np.abs(found.pixel_N3SS[0].numpy().astype(int) - expected).max() <= 2
    assert told.column_names == ["error", *MEASURES]
    assert told["aspect"][0].as_py() == pytest.approx(measures.aspect)


def test_a_broken_image_spoils_no_other_and_batches_change_nothing(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in PLAIN.values()]
    assert [image is None for image in decode_jpegs(images, CPU)] == [name == "broken tables" for name in PLAIN]
    assert decode_jpegs(images[-1:], CPU) == [None]

    spec = shared_clip("mini").image_spec
    left = decode_table(read_part(source.parts[0], DATA), DATA, spec, for_device=True)
    decoder = DeviceDecoder(spec=spec, data=DATA)
    whole = decoder.decode(left, CPU)
    monkeypatch.setattr(decode_on_device, "MOST_DEVICE_PX", 2 * 90 * 70)
    assert len(list(decode_on_device._batches(left["jpeg_px"].to_pylist()))) > 2
    again = decoder.decode(left, CPU)
    assert again.table().equals(whole.table())
    assert torch.equal(again.pixel_N3SS, whole.pixel_N3SS)


def test_an_image_whose_scale_the_device_cannot_do_is_pillows(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's kernel refuses a large scale with a RuntimeError, which no CPU can be made to do."""

    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("Too much shared memory required")

    monkeypatch.setattr(decode_on_device, "resize", refuse)
    spec = shared_clip("mini").image_spec
    table = read_part(source.parts[0], DATA)
    found = DeviceDecoder(spec=spec, data=DATA, measured=True).decode(
        decode_table(table, DATA, spec, measured=True, for_device=True), CPU
    )
    told = found.table().to_pylist()
    for row, image in enumerate(table["image"].to_pylist()):
        try:
            (expected, measures), error = decode_measured(image, spec, **MOST), None
        except BadImage as verdict:
            expected, measures, error = np.zeros((3, spec.size_px, spec.size_px)), None, verdict.reason
        np.testing.assert_array_equal(found.pixel_N3SS[row].numpy(), expected)
        assert told[row]["error"] == error
        assert told[row]["phash"] == (measures and measures.phash)


def test_a_stage_that_was_stopped_goes_on(
    source: Source, both: tuple[StageResult, StageResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, noted = Artefact.note_part, list[Shard]()

    def stop(self: Artefact, shard: Shard) -> None:
        note(self, shard)
        noted.append(shard)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Artefact, "note_part", stop)
        with pytest.raises(KeyboardInterrupt):
            make(source, tmp_path, ON_DEVICE)
    again = make(source, tmp_path, ON_DEVICE)
    assert again.artefact.manifest.stats["rows_computed"] == len(ROWS) - noted[0].rows
    assert again.artefact.manifest.shards == both[1].artefact.manifest.shards
    assert make(source, tmp_path, ON_DEVICE).reused


@pytest.mark.ray
def test_actors_make_the_same_bytes(
    source: Source, both: tuple[StageResult, StageResult], tmp_path: Path, ray_cluster: None
) -> None:
    ray = RaySettings(address="local", cpus=4, progress=False)
    assert make(source, tmp_path, ON_DEVICE, ray).artefact.manifest.shards == both[1].artefact.manifest.shards


def test_crops_are_cut_from_what_the_device_decoded(source: Source, tmp_path: Path) -> None:
    crops = CropSpec(crops=2, least_side=0.5, most_side=0.9)
    found = [
        crops_stage(
            source,
            StageContext(store=Store(str(tmp_path)), ray=HERE, settings=settings, data=DATA),
            clip_name="mini",
            clip_identity=clip_identity("mini"),
            image_spec=ImageSpec(size_px=48),
            crops=crops,
        )
        for settings in (BY_PILLOW, ON_DEVICE)
    ]
    assert not found[1].reused
    pillow_NKD, device_NKD = (load_crops(result.artefact) for result in found)
    valid_N = pillow_NKD.any(dim=2).any(dim=1)
    assert torch.equal(valid_N, device_NKD.any(dim=2).any(dim=1))
    assert float((pillow_NKD * device_NKD).sum(dim=2)[valid_N].min()) > LEAST_COSINE


def test_features_keep_their_fingerprint_unless_the_device_decodes(source: Source) -> None:
    clip = shared_clip("mini")

    def recipe(**settings: object) -> tuple[dict[str, object], str]:
        made = features_recipe(source, clip.identity, clip.image_spec, DATA, stage=StageSettings(**settings))
        return made.settings, made.fingerprint

    assert recipe() == recipe(decode="cpu")
    assert set(recipe()[0]) == {"image", "max_image_bytes", "max_image_pixels"}
    assert len({recipe()[1], recipe(decode="device")[1], recipe(decode="device", precision="bf16")[1]}) == 3
    with pytest.raises(ValueError, match=r"features\.decode=auto is resolved"):
        recipe(decode="auto")


def test_a_plan_decides_by_the_cpus_of_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [work.decode_of(cpus=cpus, gpus=gpus) for cpus, gpus in ((2, 0), (4, 1), (8, 1), (15, 2), (16, 2))] == [
        "cpu", "device", "cpu", "device", "cpu"
    ]  # fmt: skip
    config, auto = (load_config(None, ["data.source=digits", f"features.decode={way}"]) for way in ("cpu", "auto"))
    if not torch.cuda.is_available():
        assert make_plan(auto).fingerprint == make_plan(config).fingerprint
    monkeypatch.setattr(work, "decode_of", lambda *, cpus, gpus: "device")
    plan, plain = make_plan(auto), make_plan(config)
    assert plan.config.features.decode == "device"
    assert plan.facts.features.fingerprint != plain.facts.features.fingerprint
    assert plan.fingerprint != plain.fingerprint
