"""Synthetic images: what names them, how an artefact grows, and that no kill and no batch changes an image."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from raydapt.artefacts.synthesis import SynthesisJob
from raydapt.artefacts.synthetic_images import load_synthetic
from raydapt.data.sources import read_part, resolve_source
from raydapt.errors import UserError
from raydapt.models.diffusion import Sampling
from raydapt.models.diffusion_lora import adapter_weights
from raydapt.models.pipelines import pipeline_identity
from raydapt.settings.groups import DataSettings, RaySettings, SynthesisSettings
from raydapt.stages import synthesis
from raydapt.stages.commit import PART, TOLD
from raydapt.stages.context import ActorPlan
from raydapt.stages.synthesis import Synthesizer, synthesize_stage
from raydapt.store.artefact import Artefact, Shard, StageResult, Store
from tests.models.test_diffusion_lora import trained
from tests.models.tiny_diffusion import save_tiny_pipeline

CLASSES = ("dog", "cat", "sea / lake")
RAY = RaySettings(address="local", cpus=4, progress=False)
SAMPLING = Sampling(scheduler="dpm++", steps=2, guidance=2.0, negative_prompt="", size_px=16, seed=3, batch_size=4)
COMMITS = 3


def job_of(folder: str) -> SynthesisJob:
    return SynthesisJob(
        class_names=CLASSES,
        template="a photo of a {}.",
        pipeline=folder,
        identity=pipeline_identity(folder),
        sampling=SAMPLING,
    )


def synthesize(job: SynthesisJob, store: Store, samples: int, actors: int = 2) -> StageResult:
    settings = SynthesisSettings(samples_per_class=samples, batch_size=SAMPLING.batch_size, actors=actors)
    return synthesize_stage(job, settings=settings, max_error_share=0.0, ray_settings=RAY, store=store)


def part_of(actor: Synthesizer, part: int) -> pa.Table:
    return actor({PART: torch.tensor([part]).numpy()}).drop_columns(list(TOLD))


def made_without_ray(job: SynthesisJob, store: Store, samples: int, *, cpus: float = 1) -> Artefact:
    """What one actor makes in this process; its CPUs are its threads, which some processors' images depend on."""
    actor = Synthesizer(job, ActorPlan(actors=1, cpus=cpus, gpus=0))
    artefact = store.artefact_of(job.recipe)
    for part in job.parts(samples):
        artefact.commit_part(part, part_of(actor, part))
    artefact.finish(job.recipe, job.parts(samples), {}, {})
    return artefact


def hashes(artefact: Artefact) -> dict[tuple[int, int], str]:
    table = artefact.read(["class_index", "index", "image"]).to_pylist()
    return {(row["class_index"], row["index"]): hashlib.sha256(row["image"]).hexdigest() for row in table}


def pixels(artefact: Artefact) -> dict[tuple[int, int], np.ndarray]:
    table = artefact.read(["class_index", "index", "image"]).to_pylist()
    return {
        (row["class_index"], row["index"]): np.asarray(Image.open(io.BytesIO(row["image"]))).astype(int)
        for row in table
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> SynthesisJob:
    torch.set_num_threads(1)
    return job_of(save_tiny_pipeline(tmp_path_factory.mktemp("synthesis") / "tiny"))


@pytest.fixture(scope="module")
def reference(job: SynthesisJob, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return made_without_ray(job, Store(str(tmp_path_factory.mktemp("reference"))), 12)


def test_parts_keep_their_place_when_there_are_more(job: SynthesisJob) -> None:
    few, many = job.parts(4), job.parts(12)
    assert (len(few), len(many)) == (3, 9)
    assert list(many)[: len(few)] == list(few)
    places = {(c, i) for part in many for c, indices in [job.place(part)] for i in indices}
    assert places == {(c, i) for c in range(3) for i in range(12)}


def test_the_name_holds_all_but_the_count(job: SynthesisJob) -> None:
    same = replace(job, pipeline="elsewhere")
    assert same.recipe.fingerprint == job.recipe.fingerprint
    others = [
        replace(job, class_names=("dog", "cat")),
        replace(job, template="{}"),
        replace(job, identity="x"),
        replace(job, sampling=replace(SAMPLING, steps=3)),
        job.with_lora(b"weights"),
    ]
    assert len({other.recipe.fingerprint for other in (job, *others)}) == 6


def test_the_first_of_many_are_those_of_few(job: SynthesisJob, reference: Artefact) -> None:
    table = load_synthetic(reference, 5)
    assert table.class_M.tolist() == [c for c in range(3) for _ in range(5)]
    assert table.index_M.tolist() == list(range(5)) * 3
    found = hashes(reference)
    for c, i, image in zip(table.class_M.tolist(), table.index_M.tolist(), table.image_M, strict=True):
        assert image is not None
        assert hashlib.sha256(image).hexdigest() == found[c, i]
    assert len(set(found.values())) == 36
    with pytest.raises(ValueError, match="holds 12 images per class"):
        load_synthetic(reference, 13)


def test_the_artefact_is_an_ordinary_image_set(reference: Artefact) -> None:
    source = resolve_source(reference.folder.path, rows_per_part=512)
    rows = [row for part in source.parts for row in read_part(part, DataSettings()).to_pylist()]
    assert len(rows) == 36
    assert {row["label"] for row in rows} == set(CLASSES)
    assert all(row["error"] is None for row in rows)
    table = load_synthetic(reference, 12)
    assert [rows[row]["id"] for row in table.row_M.tolist()] == table.id_M
    assert [rows[row]["label"] for row in table.row_M.tolist()] == [CLASSES[c] for c in table.class_M.tolist()]


def test_an_image_that_is_no_number_is_a_row_in_error(job: SynthesisJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FloatingPointError

    monkeypatch.setattr(synthesis.ImageMaker, "make", fail)
    table = part_of(Synthesizer(job, ActorPlan(actors=1, cpus=1, gpus=0)), 4)
    assert table["error"].to_pylist() == ["not_finite"] * 4
    assert table["image"].null_count == 4
    assert table["row"].to_pylist() == [16, 17, 18, 19]


def test_more_than_the_disk_holds_is_one_sentence(tmp_path: Path, job: SynthesisJob) -> None:
    with pytest.raises(UserError, match=r"lower synthesis\.samples_per_class"):
        synthesis.check_room(Store(str(tmp_path / "not" / "yet")), 10**9, 512)
    synthesis.check_room(Store(str(tmp_path)), 10, 32)
    synthesis.check_room(Store("memory://x"), 10**15, 512)


def test_other_weights_on_a_node_are_one_sentence(job: SynthesisJob) -> None:
    with pytest.raises(UserError, match="other weights on node"):
        Synthesizer(replace(job, identity="x"), ActorPlan(actors=1, cpus=1, gpus=0))


def test_a_stage_in_fp8_keeps_its_images_apart(tmp_path: Path, job: SynthesisJob, reference: Artefact) -> None:
    pytest.importorskip("torchao", reason="the extra fp8 is not installed")
    rounded = replace(job, sampling=replace(SAMPLING, precision="fp8-weights"))
    settings = SynthesisSettings(samples_per_class=8, batch_size=SAMPLING.batch_size, precision="fp8-weights")
    store, here = Store(str(tmp_path)), RaySettings(progress=False)
    made = synthesize_stage(rounded, settings=settings, max_error_share=0.0, ray_settings=here, store=store).artefact
    assert made.fingerprint != job.recipe.fingerprint
    expected = pixels(reference)
    apart = [np.abs(found - expected[place]) for place, found in pixels(made).items()]
    assert len(apart) == 24
    assert max(each.max() for each in apart) > 0
    assert np.mean(apart) <= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's, of its own modules
def test_a_compiled_stage_makes_the_same_artefact_by_rounding_apart(
    tmp_path: Path, job: SynthesisJob, reference: Artefact
) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    settings = SynthesisSettings(samples_per_class=8, batch_size=SAMPLING.batch_size, compile=True)
    store, here = Store(str(tmp_path)), RaySettings(progress=False)
    made = synthesize_stage(job, settings=settings, max_error_share=0.0, ray_settings=here, store=store)
    assert counters["stats"]["unique_graphs"] == 1  # for six parts of three prompts
    assert made.artefact.folder.path.endswith(job.recipe.fingerprint)
    expected = pixels(reference)
    for place, found in pixels(made.artefact).items():
        assert np.abs(found - expected[place]).max() <= 1


def kill_one_actor(killed: list[int]) -> None:
    """Waits for a part to be made, then kills a process that makes others."""
    import psutil

    while not killed:
        for child in psutil.Process().children(recursive=True):
            try:
                if "MapWorker(MapBatches(Synthesizer" in " ".join(child.cmdline()) and child.cpu_times().user > 1:
                    child.send_signal(signal.SIGKILL)
                    killed.append(child.pid)
                    return
            except psutil.Error:
                continue
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_it_grows_and_a_killed_actor_changes_no_image(tmp_path: Path, job: SynthesisJob, reference: Artefact) -> None:
    store = Store(str(tmp_path))
    first = synthesize(job, store, 4)
    assert hashes(first.artefact) == {place: digest for place, digest in hashes(reference).items() if place[1] < 4}
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_actor, args=(killed,), daemon=True)
    killer.start()
    second = synthesize(job, store, 12)
    killer.join(1)
    assert killed, "no actor was killed"
    assert hashes(second.artefact) == hashes(reference)
    stats = second.artefact.manifest.stats
    assert (stats["rows_computed"], stats["rows_reused"]) == (24, 12)
    assert stats["model_seconds"] > 0
    assert synthesize(job, store, 12).reused
    assert synthesize(job, store, 5).reused


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_actors_get_a_large_lora_and_ray_has_nothing_to_complain_of(
    tmp_path: Path, job: SynthesisJob, reference: Artefact, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = adapter_weights(trained(4, text_encoder=False), text_encoder=False)
    data = save({name: weight.contiguous() for name, weight in weights.items()}, metadata={"padding": "x" * 200_000})
    with_lora = job.with_lora(data)
    expected = made_without_ray(with_lora, Store(str(tmp_path / "here")), 4)
    found = synthesize(with_lora, Store(str(tmp_path / "ray")), 4, actors=1).artefact
    assert hashes(found) == hashes(expected)
    assert hashes(found) != {place: digest for place, digest in hashes(reference).items() if place[1] < 4}
    assert "core_worker" not in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_driver_is_taken_up(tmp_path: Path, job: SynthesisJob, reference: Artefact) -> None:
    command = [sys.executable, "-m", "tests.stages.test_synthesis", job.pipeline, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=400)
    assert done.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*.parquet")}
    assert len(kept) >= COMMITS  # actors had written others that the driver had not heard of
    result = synthesize(job, Store(str(tmp_path)), 12)
    assert result.artefact.manifest.stats["rows_computed"] <= 36 - len(kept) * SAMPLING.batch_size
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # none of them was made again
    assert hashes(result.artefact) == hashes(reference)


def die_after_commits(folder: str, store: str) -> None:
    """The driver that is killed: run in a process of its own."""
    note, done = Artefact.note_part, []

    def note_then_die(self: Artefact, shard: Shard) -> None:
        note(self, shard)
        done.append(shard)
        if len(done) == COMMITS:
            os.kill(os.getpid(), signal.SIGKILL)

    Artefact.note_part = note_then_die  # type: ignore[method-assign]
    synthesize(job_of(folder), Store(store), 12)


if __name__ == "__main__":
    die_after_commits(sys.argv[1], sys.argv[2])
