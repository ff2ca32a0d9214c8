from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raydapt.artefacts.features import features_recipe, load_features, load_labels
from raydapt.artefacts.loaded import loaded
from raydapt.artefacts.pixels import StoredPixels, load_pixels
from raydapt.data.decode import BadImage, decode_image
from raydapt.data.sources import Source, read_part, resolve_source
from raydapt.errors import UserError
from raydapt.models.clip import Clip, clip_identity, load_clip
from raydapt.settings.groups import DataSettings, Precision, RaySettings, StageSettings
from raydapt.settings.types import Auto
from raydapt.stages.context import ActorPlan, StageContext
from raydapt.stages.features import Encoder, encode_pixels, features_stage
from raydapt.stages.inference import Inference
from raydapt.stages.pixels import pixels_stage
from raydapt.store.artefact import StageResult, Store
from tests.stages.images import BAD, write_images

DATA = DataSettings(max_error_share=0.05)
SETTINGS = StageSettings(rows_per_part=32, batch_size=20, actors=2)
RAY = RaySettings(address="local", cpus=4, progress=False)
BAD_ROWS = {5: BAD[0], 40: BAD[1], 41: BAD[2]}


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.set_num_threads(1)  # the naive loop shares the machine with the actors
    return load_clip("mini")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("images")
    return resolve_source(str(write_images(folder / "a.parquet", 150, bad=BAD_ROWS)), rows_per_part=32)


def run_features(
    source: Source, clip: Clip, store: Store, settings: StageSettings = SETTINGS, data: DataSettings = DATA
) -> StageResult:
    return features_stage(
        source,
        StageContext(store=store, ray=RAY, settings=settings, data=data),
        clip_name="mini",
        clip_identity=clip.identity,
        image_spec=clip.image_spec,
    )


@pytest.fixture(scope="module")
def made(
    source: Source, clip: Clip, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Store, StageResult]:
    store = Store(str(tmp_path_factory.mktemp("store")))
    return store, run_features(source, clip, store)


def naive(source: Source, clip: Clip) -> list[tuple[torch.Tensor | None, np.ndarray | None, str | None]]:
    """One image at a time: its feature and pixels, or its error."""
    found: list[tuple[torch.Tensor | None, np.ndarray | None, str | None]] = []
    for part in source.parts:
        for row in read_part(part, DATA).to_pylist():
            try:
                if row["error"] is not None:
                    raise BadImage(row["error"])
                pixel = decode_image(row["image"], clip.image_spec, max_pixels=10**8, max_bytes=10**8)
            except BadImage as error:
                found.append((None, None, error.reason))
                continue
            with torch.no_grad():
                found.append((clip.encode_image(torch.from_numpy(pixel)[None])[0], pixel, None))
    return found


@pytest.mark.ray
def test_features_equal_a_plain_loop(source: Source, clip: Clip, made: tuple[Store, StageResult]) -> None:
    table, expected = load_features(made[1].artefact), naive(source, clip)
    assert not made[1].reused
    assert table.row_N.tolist() == list(range(150))
    assert table.error_N == [error for _, _, error in expected]
    assert (~table.valid_N).nonzero().flatten().tolist() == [5, 40, 41]
    assert table.feature_ND.shape == (150, clip.embed_dim)
    for index, (feature, _, _) in enumerate(expected):
        wanted = torch.zeros(clip.embed_dim) if feature is None else feature
        torch.testing.assert_close(table.feature_ND[index], wanted, rtol=1e-4, atol=1e-5)
    assert table.split_N == ["test" if row % 4 == 0 else "train" for row in range(150)]
    assert len(set(table.id_N)) == 150


@pytest.mark.ray
def test_labels_are_read_apart(made: tuple[Store, StageResult]) -> None:
    table = load_features(made[1].artefact)
    assert not any("label" in name for name in vars(table))
    assert load_labels(made[1].artefact) == [f"class {row % 3}" for row in range(150)]


@pytest.mark.ray
def test_manifest_tells_rows_errors_and_speed(made: tuple[Store, StageResult]) -> None:
    manifest = made[1].artefact.manifest
    assert manifest.rows == 150
    assert sum(manifest.errors.values()) == 3
    assert set(manifest.errors) <= {"empty", "not_an_image", "corrupt"}
    assert manifest.stats["rows_computed"] == 150
    assert manifest.stats["rows_per_s"] > 0
    assert 0 < manifest.stats["model_share"] <= 1
    assert manifest.versions["ray"]


@pytest.mark.ray
def test_second_run_reuses(source: Source, clip: Clip, made: tuple[Store, StageResult]) -> None:
    assert run_features(source, clip, made[0]).reused
    with pytest.raises(UserError, match="3 of 150 images"):
        run_features(source, clip, made[0], data=DataSettings(max_error_share=0.01))


@pytest.mark.ray
def test_one_actor_makes_the_same_bytes(
    source: Source, clip: Clip, made: tuple[Store, StageResult], tmp_path: Path
) -> None:
    settings = StageSettings(rows_per_part=32, batch_size=20, actors=1)
    alone = run_features(source, clip, Store(str(tmp_path)), settings)
    assert alone.artefact.manifest.shards == made[1].artefact.manifest.shards
    assert alone.artefact.manifest.stats["actors"] == 1


@pytest.mark.ray
@pytest.mark.chaos
def test_killed_actor_changes_nothing(
    source: Source, clip: Clip, made: tuple[Store, StageResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    from raydapt.store.artefact import Artefact, Shard

    note, killed = Artefact.note_part, []

    def note_and_kill(self: Artefact, shard: Shard) -> None:
        if not killed:
            mine = psutil.Process().children(recursive=True)
            encoder = next(process for process in mine if "Encoder" in " ".join(process.cmdline()))
            killed.append(encoder.pid)
            encoder.kill()
        note(self, shard)

    monkeypatch.setattr(Artefact, "note_part", note_and_kill)
    result = run_features(source, clip, Store(str(tmp_path)))
    assert killed
    assert result.artefact.manifest.shards == made[1].artefact.manifest.shards


@pytest.mark.ray
def test_pixels_equal_decoding(source: Source, clip: Clip, tmp_path: Path, ray_cluster: None) -> None:
    store = Store(str(tmp_path / "store"))
    context = StageContext(store=store, ray=RAY, settings=SETTINGS, data=DATA)
    result = pixels_stage(source, context, image_spec=clip.image_spec)
    side = clip.image_spec.size_px
    in_memory = load_pixels(result.artefact, 1.0)
    assert isinstance(in_memory, torch.Tensor)
    assert in_memory.shape == (150, 3, side, side)
    for pixel, (_, wanted, _) in zip(in_memory.numpy(), naive(source, clip), strict=True):
        np.testing.assert_array_equal(pixel, np.zeros((3, side, side)) if wanted is None else wanted)
    stored = load_pixels(result.artefact, 1e-6)
    assert isinstance(stored, StoredPixels)
    assert torch.equal(stored[torch.arange(150)], in_memory)
    assert pixels_stage(source, context, image_spec=clip.image_spec).reused


def test_fingerprint_follows_images_model_and_limits(source: Source, clip: Clip, tmp_path: Path) -> None:
    names = {
        features_recipe(source, clip.identity, clip.image_spec, DATA).fingerprint,
        features_recipe(source, "other weights", clip.image_spec, DATA).fingerprint,
        features_recipe(source, clip.identity, clip.image_spec, DataSettings(max_image_pixels=9)).fingerprint,
        features_recipe(
            resolve_source(str(write_images(tmp_path / "b.parquet", 149)), rows_per_part=32),
            clip.identity,
            clip.image_spec,
            DATA,
        ).fingerprint,
    }
    assert len(names) == 4
    # How the stage is spread, or how many bad rows are let pass, makes no other features.
    same = features_recipe(source, clip_identity("mini"), clip.image_spec, DataSettings(max_error_share=0.5))
    assert same.fingerprint in names


def test_features_of_another_precision_are_others_than_those_in_fp32(source: Source, clip: Clip) -> None:
    def print_of(precision: Precision | Auto) -> str:
        stage = StageSettings(precision=precision)
        return features_recipe(source, clip.identity, clip.image_spec, DATA, stage=stage).fingerprint

    plain = features_recipe(source, clip.identity, clip.image_spec, DATA).fingerprint
    assert print_of("auto") == print_of("fp32") == plain
    assert len({plain, print_of("tf32"), print_of("bf16"), print_of("fp16")}) == 4
    with pytest.raises(UserError, match=r"features\.precision=tf32 needs a GPU"):
        Encoder("mini", clip.identity, StageSettings(precision="tf32"), ActorPlan(actors=1, cpus=1, gpus=0))


@pytest.mark.ray
def test_features_are_read_once_while_somebody_holds_them(made: tuple[Store, StageResult]) -> None:
    _, result = made
    first, second = load_features(result.artefact), load_features(result.artefact)
    assert first.feature_ND.data_ptr() == second.feature_ND.data_ptr()
    assert torch.equal(first.valid_N, second.valid_N)
    before = first.feature_ND.clone()
    del first, second
    assert loaded(result.artefact, "feature") is None  # nobody keeps them
    assert torch.equal(load_features(result.artefact).feature_ND, before)


def test_actor_refuses_other_weights() -> None:
    with pytest.raises(UserError, match=r"model\.clip='mini' holds other weights"):
        Encoder("mini", "another identity", StageSettings(), ActorPlan(actors=1, cpus=1, gpus=0))


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_encoding_leaves_bad_images_out(clip: Clip, rows: int) -> None:
    side = clip.image_spec.size_px
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 3, side, side), dtype=np.uint8)
    valid = np.arange(rows) % 3 != 2
    column = encode_pixels(Inference.of(clip, clip.device, "fp32"), pixels, valid, batch_size=3)
    assert column.type == pa.list_(pa.float32(), clip.embed_dim)
    assert column.is_valid().to_pylist() == valid.tolist()
