"""A small stage stays in this process, and gives the same bytes as on Ray, also half-way from one to the other."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from raydapt.artefacts.crops import CropSpec
from raydapt.cluster.nodes import may_stay
from raydapt.data.decode import ImageSpec, decode_image
from raydapt.data.sources import Source, read_part, resolve_source
from raydapt.errors import UserError
from raydapt.models.clip import clip_identity
from raydapt.models.frozen import load_frozen, shared_clip
from raydapt.settings.groups import DataSettings, ModelSettings, RaySettings, StageSettings, TrainSettings
from raydapt.stages import work
from raydapt.stages.commit import Committed, commit_part
from raydapt.stages.context import StageContext
from raydapt.stages.crops import crops_stage
from raydapt.stages.features import features_stage
from raydapt.stages.pixels import pixels_stage
from raydapt.stages.reading import decode_table, decoded_here
from raydapt.stages.run import Stage, run_stage
from raydapt.store.artefact import Artefact, Shard, StageResult, Store
from raydapt.store.fingerprint import Recipe
from raydapt.train.ray_train import check_workers, trains_here
from tests.stages.images import BAD, write_images
from tests.stages.test_run import result_rows, table_of

DATA = DataSettings(max_error_share=0.05)
HERE = RaySettings(cpus=4, progress=False)
ON_RAY = RaySettings(address="local", cpus=4, progress=False)
SETTINGS = StageSettings(rows_per_part=32, batch_size=20)
BAD_ROWS = {5: BAD[0], 40: BAD[1], 41: BAD[2]}
Make = Callable[[Source, Store, RaySettings], StageResult]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("images")
    return resolve_source(str(write_images(folder / "a.parquet", 100, bad=BAD_ROWS)), rows_per_part=32)


def context_of(store: Store, ray: RaySettings) -> StageContext:
    return StageContext(store=store, ray=ray, settings=SETTINGS, data=DATA)


def make_features(source: Source, store: Store, ray: RaySettings) -> StageResult:
    spec = shared_clip("mini").image_spec
    model = {"clip_name": "mini", "clip_identity": clip_identity("mini"), "image_spec": spec}
    return features_stage(source, context_of(store, ray), **model)


def make_crops(source: Source, store: Store, ray: RaySettings) -> StageResult:
    spec = ImageSpec(size_px=48)
    model = {"clip_name": "mini", "clip_identity": clip_identity("mini"), "image_spec": spec}
    crops = CropSpec(crops=2, least_side=0.5, most_side=0.9)
    return crops_stage(source, context_of(store, ray), **model, crops=crops)


def make_pixels(source: Source, store: Store, ray: RaySettings) -> StageResult:
    spec = shared_clip("mini").image_spec
    return pixels_stage(source, context_of(store, ray), image_spec=spec)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts Ray here fails."""
    monkeypatch.setattr("raydapt.cluster.joining._init", lambda *_: pytest.fail("Ray was started"))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("make", [make_features, make_crops, make_pixels])
def test_a_small_stage_needs_no_ray_and_leaves_torch_as_it_was(source: Source, tmp_path: Path, make: Make) -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    result = make(source, Store(str(tmp_path)), HERE)
    assert result.artefact.manifest.rows == 100
    assert sum(result.artefact.manifest.errors.values()) == 3
    assert result.artefact.manifest.stats["actors"] == 1
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    assert make(source, Store(str(tmp_path)), HERE).reused


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("make", [make_features, make_crops, make_pixels])
def test_here_on_ray_and_half_and_half_are_the_same_bytes(
    source: Source,
    tmp_path: Path,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here, on_ray = (make(source, Store(str(tmp_path / ray.address)), ray).artefact for ray in (HERE, ON_RAY))
    assert here.manifest.shards == on_ray.manifest.shards
    assert here.fingerprint == on_ray.fingerprint
    for first, then in ((HERE, ON_RAY), (ON_RAY, HERE)):
        store = Store(str(tmp_path / f"from {first.address}"))
        with monkeypatch.context() as patch:
            patch.setattr(Artefact, "note_part", stop_after(2))
            with pytest.raises(KeyboardInterrupt):
                make(source, store, first)
        resumed = make(source, store, then).artefact
        assert resumed.manifest.stats["rows_computed"] < 100
        assert resumed.manifest.shards == here.manifest.shards
    assert "core_worker" not in capfd.readouterr().err  # Ray complains of arguments that a new actor may not find


def stop_after(parts: int) -> Callable[..., object]:
    note, done = Artefact.note_part, []

    def note_or_stop(self: Artefact, shard: Shard) -> None:
        if len(done) == parts:
            raise KeyboardInterrupt
        done.append(shard.part)
        note(self, shard)

    return note_or_stop


def stage_here(row_s: float | None, made: list[int], ray: RaySettings = HERE) -> Stage:
    """A stage of four parts of three rows, which notes what is made here; nothing is made on Ray."""

    def here(pending: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
        for part in pending:
            made.append(part)
            yield part, table_of(result_rows(part, 3 if part != 1 else 0))

    return Stage(
        recipe=Recipe(kind="values", settings={}, inputs=("x",)),
        parts=range(4),
        dataset_of=lambda pending: pytest.fail("no dataset is looked at"),
        here=here,
        row_s=lambda: row_s,
        rows=12,
        max_error_share=0.0,
        ray=ray,
    )


def test_the_estimate_decides_and_a_wrong_one_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_ray: list[list[int]] = []

    def through_ray(stage: Stage, pending: Sequence[int], artefact: Artefact, _: object) -> Iterator[Committed]:
        on_ray.append(list(pending))
        for part in pending:
            if part != 1:
                yield commit_part(artefact, part, table_of(result_rows(part, 3)))

    monkeypatch.setattr("raydapt.stages.through_ray.commits_through_ray", through_ray)
    for number, (row_s, ray, here) in enumerate(
        [(0.1, HERE, [0, 1, 2, 3]), (3.0, HERE, []), (None, HERE, []), (0.1, ON_RAY, [])]
    ):
        made: list[int] = []
        result = run_stage(Store(str(tmp_path / str(number))), stage_here(row_s, made, ray))
        assert made == here
        assert [shard.part for shard in result.artefact.manifest.shards] == [0, 2, 3]  # part 1 has no rows
    assert on_ray == [[0, 1, 2, 3]] * 3
    monkeypatch.setattr("raydapt.stages.run.HERE_S", -1.0)  # whatever a part took was too long
    made = []
    run_stage(Store(str(tmp_path / "slow")), stage_here(0.1, made))
    assert (made, on_ray[-1]) == ([0], [1, 2, 3])


def test_who_may_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_stay(RaySettings())
    for named in (
        {"address": "local"}, {"address": "head:6379"}, {"decode_nodes": "raydapt=cpu"}, {"model_nodes": "raydapt=gpu"},
    ):  # fmt: skip
        assert not may_stay(RaySettings(**named))
    one, two = TrainSettings(workers=1), TrainSettings(workers=2)
    assert trains_here(TrainSettings(), ON_RAY)
    assert (trains_here(one, HERE), trains_here(one, ON_RAY), trains_here(two, HERE)) == (True, False, False)
    assert not trains_here(TrainSettings(workers=[1, 4]), HERE)
    with pytest.raises(UserError, match=r"train.workers=\[1, 4\] and ray.model_nodes='raydapt=gpu'"):
        check_workers(TrainSettings(workers=[1, 4]), RaySettings(model_nodes="raydapt=gpu"))
    check_workers(TrainSettings(workers=[4, 4]), RaySettings(model_nodes="raydapt=gpu"))
    connected = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: [{}, {}])
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "ray", connected)
        assert not may_stay(RaySettings())
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "ray://head:10001")
    assert not may_stay(RaySettings())


def test_estimates_grow_with_model_images_and_steps() -> None:
    assert 0 < work.encoding_s("mini") < 0.01
    assert work.encoding_s("mini", views=5) == pytest.approx(5 * work.encoding_s("mini"))
    words = {"size_px": 512, "steps": 20}
    sd_s = work.drawing_s(3_440_000_000, **words, guidance=7.5)
    assert sd_s == pytest.approx(2 * 860e6 * 512 * 40 / 5e10)
    assert work.drawing_s(3_440_000_000, **words, guidance=1.0) == pytest.approx(sd_s / 2)


def test_decoding_on_threads_is_decoding(source: Source) -> None:
    spec = shared_clip("mini").image_spec
    found = dict(decoded_here(source.parts, DATA, spec))
    assert list(found) == [part.index for part in source.parts]
    for part in source.parts:
        assert found[part.index].equals(decode_table(read_part(part, DATA), DATA, spec))


def test_threads_that_decode_leave_warnings_alone(source: Source) -> None:
    images = read_part(source.parts[0], DATA)["image"].to_pylist()
    before, spec = list(warnings.filters), ImageSpec(size_px=8)

    def decode() -> None:
        for _ in range(20):
            decode_image(images[0], spec, max_pixels=10**6, max_bytes=10**6)

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_a_model_is_loaded_once_a_process() -> None:
    assert load_frozen(DATA, ModelSettings()) is shared_clip("mini")
