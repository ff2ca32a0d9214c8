"""A cluster of several nodes on this machine, from which nodes are removed while they work.

Labelled nodes decode or hold models; whatever is lost is made again, and the bytes are those of an undisturbed run.
"""

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from ray.cluster_utils import Cluster

from raydapt.cluster.joining import ensure_ray
from raydapt.data.sources import Source, resolve_source
from raydapt.errors import UserError
from raydapt.models.clip import clip_identity, load_clip
from raydapt.settings.groups import DataSettings, RaySettings, StageSettings, SynthesisSettings, TrainSettings
from raydapt.stages import features, synthesis
from raydapt.stages.commit import TOLD
from raydapt.stages.context import ActorPlan, StageContext
from raydapt.stages.features import Encoder, features_stage
from raydapt.stages.reading import read_and_decode
from raydapt.stages.run import whole_parts
from raydapt.stages.synthesis import Synthesizer
from raydapt.store.artefact import Artefact, Shard, StageResult, Store
from raydapt.store.folder import Folder
from raydapt.train.checkpoint import Checkpoints, TrainState
from raydapt.train.loop import Log, fit
from raydapt.train.place import WorkerContext
from raydapt.train.ray_train import train_on_workers
from tests.models.tiny_diffusion import save_tiny_pipeline
from tests.stages.images import write_images
from tests.stages.test_synthesis import SAMPLING, job_of, made_without_ray
from tests.train.test_loop import MemoryCheckpoints
from tests.train.toy import Toy, toy_images

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.slow]

ROWS, ROWS_PER_PART, PART_SLEEP_S, STEP_SLEEP_S = 160, 8, 0.4, 0.1
CPU_NODES, GPU_NODES = "raydapt=cpu", "raydapt=gpu"


class Nodes:
    """A head that runs no task, one node that decodes, and nodes with a (pretended) GPU that hold models.

    A model takes half a node, so that there is room for it when its node is lost.
    """

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.decoder = self.cluster.add_node(num_cpus=4, labels={"raydapt": "cpu"}, wait=False)
        self.models = [self.add_model_node(), self.add_model_node()]
        self.cluster.wait_for_nodes(timeout=120)

    @property
    def settings(self) -> RaySettings:
        return RaySettings(
            address=self.cluster.address,
            decode_nodes=CPU_NODES,
            model_nodes=GPU_NODES,
            wait_for_nodes_s=0,
            progress=False,
        )

    def add_model_node(self) -> Any:
        return self.cluster.add_node(num_cpus=4, num_gpus=1, labels={"raydapt": "gpu"}, wait=False)

    def lose_one(self, *, what: str) -> None:
        """Removes a model node that works on something of that name, as a spot machine goes: without a word."""
        node = next(node for node in self.models if self.working(node, what=what))
        self.models.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def complete(self) -> None:
        while len(self.models) < 2:
            self.models.append(self.add_model_node())
        self.cluster.wait_for_nodes(timeout=120)

    def working(self, node: Any, *, what: str) -> bool:
        """Whether a process of the node is at work on something of that name."""
        try:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            return any(what in " ".join(child.cmdline()) for child in raylet.children())
        except psutil.Error:
            return False


@pytest.fixture(scope="module")
def running() -> Iterator[Nodes]:
    import ray

    ray.shutdown()  # the session's own cluster, if it runs; whoever needs one next starts it again
    torch.set_num_threads(1)
    nodes = Nodes()
    ensure_ray(nodes.settings)
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()


@pytest.fixture
def nodes(running: Nodes) -> Nodes:
    running.complete()
    return running


class SlowEncoder(Encoder):
    """Slow enough that a node is lost in the middle."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        time.sleep(PART_SLEEP_S)
        return super().__call__(batch)


class SlowSynthesizer(Synthesizer):
    """The same for synthesis."""

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        time.sleep(PART_SLEEP_S)
        return super().__call__(batch)


def run_features(source: Source, store: Store, ray_settings: RaySettings) -> StageResult:
    settings = StageSettings(rows_per_part=ROWS_PER_PART, actors=2, cpus_per_actor=2, gpus_per_actor=0.5)
    return features_stage(
        source,
        StageContext(store=store, ray=ray_settings, settings=settings, data=DataSettings()),
        clip_name="mini",
        clip_identity=clip_identity("mini"),
        image_spec=load_clip("mini").image_spec,
    )


def undisturbed_features(source: Source, store: Store) -> list[Shard]:
    """The same parts made one after the other in this process, without Ray."""
    encoder = Encoder("mini", clip_identity("mini"), StageSettings(), ActorPlan(actors=1, cpus=1, gpus=0))
    artefact = store.artefact("features", "0" * 16)
    decode = {"data": DataSettings(), "spec": load_clip("mini").image_spec, "measured": True}
    shards = []
    for part in source.parts:
        (packed,) = read_and_decode(pa.table({"parts": [pickle.dumps((part,))]}), **decode)
        ((_, table),) = whole_parts([encoder(packed)])
        shards.append(artefact.commit_part(part.index, table.drop_columns(list(TOLD))))
    return shards


def after_commits(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], None]) -> list[int]:
    """Calls `act` when the driver hears of so many commits; returns the list of their parts."""
    note, done = Artefact.note_part, []

    def note_then_act(self: Artefact, shard: Shard) -> None:
        note(self, shard)
        done.append(shard.part)
        if len(done) == count:
            act()

    monkeypatch.setattr(Artefact, "note_part", note_then_act)
    return done


def test_features_keep_to_their_nodes_and_survive_the_loss_of_one(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve_source(str(write_images(tmp_path / "a.parquet", ROWS)), rows_per_part=ROWS_PER_PART)
    expected = undisturbed_features(source, Store(str(tmp_path / "other")))
    monkeypatch.setattr(features, "Encoder", SlowEncoder)
    seen: set[tuple[str, str]] = set()

    def look() -> None:
        places = {"cpu": [nodes.decoder], "gpu": nodes.models}
        for what in ("read_and_decode", "SlowEncoder"):
            seen.update((label, what) for label in places for node in places[label] if nodes.working(node, what=what))

    watcher = Repeated(look)
    done = after_commits(monkeypatch, 3, lambda: nodes.lose_one(what="SlowEncoder"))
    result = run_features(source, Store(str(tmp_path / "store")), nodes.settings)
    watcher.stop()
    assert result.artefact.manifest.stats["actors"] == 2  # half a GPU each
    assert result.artefact.manifest.shards == expected
    assert sorted(done) == list(range(ROWS // ROWS_PER_PART))  # nothing twice
    assert seen == {("cpu", "read_and_decode"), ("gpu", "SlowEncoder")}


@pytest.mark.parametrize("label", ["decode_nodes", "model_nodes"])
def test_a_label_that_no_node_has_is_one_sentence(nodes: Nodes, tmp_path: Path, label: str) -> None:
    source = resolve_source(str(write_images(tmp_path / "a.parquet", 8)), rows_per_part=8)
    settings = replace(nodes.settings, **{label: "raydapt=tpu"})
    with pytest.raises(UserError, match=rf"Setting ray\.{label} needs .*labelled raydapt=tpu.*0 such nodes"):
        run_features(source, Store(str(tmp_path / "store")), settings)


def test_synthesis_survives_the_loss_of_a_node(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(save_tiny_pipeline(tmp_path / "tiny"))
    expected = made_without_ray(job, Store(str(tmp_path / "other")), 16, cpus=2)  # as many as each actor has
    torch.set_num_threads(1)
    monkeypatch.setattr(synthesis, "Synthesizer", SlowSynthesizer)
    done = after_commits(monkeypatch, 2, lambda: nodes.lose_one(what="SlowSynthesizer"))
    result = synthesis.synthesize_stage(
        job,
        settings=SynthesisSettings(
            samples_per_class=16, batch_size=SAMPLING.batch_size, actors=2, cpus_per_actor=2, gpus_per_actor=0
        ),
        max_error_share=0.0,
        ray_settings=nodes.settings,
        store=Store(str(tmp_path / "store")),
    )
    assert sorted(done) == sorted(set(done))
    assert result.artefact.manifest.shards == expected.manifest.shards


class SlowToy(Toy):
    """Without noise, so that one worker and two learn the same; slow enough that a node is lost in the middle."""

    sleep_s = STEP_SLEEP_S

    def forward(self, batches: Any) -> torch.Tensor:
        time.sleep(self.sleep_s)
        batch = batches["pseudo"]
        return -(batch.target_BC * self.logits(batch.image_B).log_softmax(-1)).sum(-1).mean()


class TrainSlowToy:
    """What every worker does; each one notes its steps in a file of its own."""

    def __init__(self, settings: TrainSettings, notes: Path | None = None) -> None:
        self.settings, self.notes = settings, notes

    def __call__(self, place: WorkerContext, checkpoints: Checkpoints, log: Log) -> TrainState:
        def note(line: Any) -> None:
            if self.notes is not None:
                with (self.notes / f"{place.rank}").open("a") as file:
                    file.write(f"{os.getpid()} {line['round']} {line['epoch']} {place.world}\n")

        images = toy_images()
        toy = SlowToy(images)
        toy.sleep_s = STEP_SLEEP_S if self.notes else 0.0
        return fit(toy, images, self.settings, seed=1, place=place, checkpoints=checkpoints, log=note)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_survives_the_loss_of_a_node(nodes: Nodes, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    settings = TrainSettings(
        workers=2, cpus_per_worker=4, gpus_per_worker=0, epochs=6, learning_rate=0.1, warmup_epochs=1.0,
        checkpoint_every_s=0, max_failures=3,
    )  # fmt: skip
    undisturbed = TrainSlowToy(settings)(
        WorkerContext(device=torch.device("cpu")), MemoryCheckpoints(), lambda line: None
    )
    lost: list[int] = []

    def lose_a_node_at_work() -> None:
        lines = (notes / "0").read_text().splitlines() if (notes / "0").exists() else []
        if lost or len(lines) < 3:
            return
        lost.append(len(lines))
        nodes.lose_one(what="RayTrainWorker")

    watcher = Repeated(lose_a_node_at_work)
    lines: list[Any] = []
    state = train_on_workers(
        TrainSlowToy(settings, notes),
        settings,
        ray_settings=replace(nodes.settings, model_nodes=None),  # three nodes for two workers
        storage=Folder(str(tmp_path / "ray_train"), setting="runs"),
        name="lost",
        log=lines.append,
    )
    watcher.stop()
    assert lost, "no node was lost"
    assert len({line.split()[0] for line in (notes / "0").read_text().splitlines()}) == 2  # begun anew, once
    assert [(line["round"], line["epoch"]) for line in lines] == [(r, e) for r in (1, 2) for e in range(1, 7)]
    assert state.finished
    for name, tensor in undisturbed.method.items():
        torch.testing.assert_close(state.method[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_goes_on_with_the_workers_that_are_left(nodes: Nodes, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    settings = TrainSettings(
        workers=[1, 3], cpus_per_worker=4, gpus_per_worker=0, epochs=6, learning_rate=0.1, warmup_epochs=1.0,
        checkpoint_every_s=0, max_failures=3,
    )  # fmt: skip
    undisturbed = TrainSlowToy(settings)(
        WorkerContext(device=torch.device("cpu")), MemoryCheckpoints(), lambda line: None
    )
    lost: list[int] = []

    def written(rank: int) -> list[str]:
        return (notes / f"{rank}").read_text().splitlines() if (notes / f"{rank}").exists() else []

    def lose_a_node_at_work() -> None:
        if not lost and len(written(0)) >= 3:
            lost.append(len(written(0)))
            nodes.lose_one(what="RayTrainWorker")

    watcher = Repeated(lose_a_node_at_work)
    lines: list[Any] = []
    state = train_on_workers(
        TrainSlowToy(settings, notes),
        settings,
        ray_settings=replace(nodes.settings, model_nodes=None),  # three nodes for three workers, and then two
        storage=Folder(str(tmp_path / "ray_train"), setting="runs"),
        name="elastic",
        log=lines.append,
    )
    watcher.stop()
    assert lost, "no node was lost"
    assert lines[-1]["epoch"] == 6
    assert len({line.split()[0] for line in written(0)}) == 2  # begun anew, once
    assert {line.split()[-1] for line in written(0)} == {"3", "2"}  # workers there were
    assert state.finished
    for name, tensor in undisturbed.method.items():
        torch.testing.assert_close(state.method[name], tensor, rtol=1e-4, atol=1e-5)


class Repeated(threading.Thread):
    """Calls a function ten times a second, beside what the test does."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._function, self._ended = function, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            self._function()

    def stop(self) -> None:
        self._ended.set()
        self.join()
