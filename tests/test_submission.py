"""`raydapt submit`: what is sent, and a real cluster of two nodes with token authentication."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from raydapt.cluster import joining as cluster
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.verbs import submit as submission
from raydapt.verbs.submit import EXCLUDES, connect, prepare, submission_id
from tests.servers import JsonAnswers, served

ROOT = Path(__file__).parents[1]
SMALL = ["data.limit=200", "train.max_steps_per_round=3", "cpl.rounds=1", "ray.progress=false"]


def test_the_same_settings_are_the_same_submission() -> None:
    ids = {
        submission_id(load_config(None, overrides), verb)
        for overrides, verb in [
            ([], "run"),
            (["ray.cpus=8", "ray.address=local"], "run"),  # where it is sent from changes no result
            (["seed=1"], "run"),
            ([], "features"),
        ]
    }
    assert len(ids) == 3
    assert all(name.startswith("raydapt-cpl-") for name in ids)


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAYDAPT_DATA", "s3://bucket/data")
    monkeypatch.setenv("MY_SETTING", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never")
    sent = prepare("jobs/cpl.yaml", ["data.class_names=[a b, c]"], variables=["MY_SETTING"])
    assert sent.entrypoint.startswith("python -m raydapt.cli run jobs/cpl.yaml 'data.class_names=[a b, c]'")
    assert sent.environment["RAYDAPT_DATA"] == "s3://bucket/data"
    assert sent.environment["MY_SETTING"] == "1"
    assert "never" not in sent.command_line("http://head:8265")
    assert {".git", "store", "runs", ".venv"} <= set(EXCLUDES)
    line = sent.command_line("http://head:8265")
    assert line.startswith("ray job submit --address http://head:8265 --submission-id raydapt-cpl-")
    assert line.endswith(f"-- {sent.entrypoint}")


def test_a_method_or_settings_alone_need_no_job_file(tmp_path: Path) -> None:
    sent = prepare("fpl", ["data.source=s3://bucket/photos"], working_dir=str(tmp_path))
    assert sent.entrypoint == "python -m raydapt.cli run fpl data.source=s3://bucket/photos ray.address=auto"
    assert sent.working_dir == str(tmp_path)
    assert sent.submission_id.startswith("raydapt-fpl-")
    same = prepare("data.source=s3://bucket/photos", ["method=fpl"], working_dir=str(tmp_path))
    assert same.entrypoint.endswith("run data.source=s3://bucket/photos method=fpl ray.address=auto")
    assert same.submission_id == sent.submission_id
    sweep = prepare("fpl", [], verb="tune", working_dir=str(tmp_path))
    assert sweep.submission_id != prepare("fpl", [], working_dir=str(tmp_path)).submission_id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"job": "cpll", "overrides": []}, ["'cpll'", "did you mean 'cpl'?"]),
        ({"job": "cpl", "overrides": [], "working_dir": "no/such"}, ["--working-dir='no/such'", "no folder"]),
        ({"job": "jobs/cpl.yaml", "overrides": [], "variables": ["HF_TOKEN"]}, ["HF_TOKEN", "secret"]),
        ({"job": "jobs/cpl.yaml", "overrides": ["seeed=1"]}, ["seeed"]),
        ({"job": "jobs/none.yaml", "overrides": []}, ["none.yaml"]),
        ({"job": "jobs/cpl.yaml", "overrides": [], "working_dir": "tests"}, ["working directory", "cpl.yaml"]),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        prepare(**arguments)
    assert all(word in str(error.value) for word in words)


class YoungCluster:
    """Answers, but has an agent that takes jobs only after some tries."""

    def __init__(self, refusals: float) -> None:
        self.refusals = refusals
        self.jobs: list[dict[str, Any]] = []

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **job: Any) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            raise RuntimeError("Request failed with status code 500: No available agent to submit job")
        self.jobs.append(job)


def test_a_cluster_that_has_just_started_is_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(submission.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    sent, young, never = prepare("jobs/cpl.yaml", []), YoungCluster(3), YoungCluster(float("inf"))
    assert submission.submit(young, sent)  # type: ignore[arg-type]
    assert [job["submission_id"] for job in young.jobs] == [sent.submission_id]
    assert clock[0] == 3 * submission._POLL_S
    with pytest.raises(UserError, match=r"no agent that runs jobs for 180 s.*--dashboard-agent-listen-port"):
        submission.submit(never, sent)  # type: ignore[arg-type]


def test_the_address_that_is_given_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Handler(JsonAnswers, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.answer(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"})

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "intranet")
        connect(f"http://127.0.0.1:{server.server_port}")
        assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"
    assert heard


def test_no_cluster_there() -> None:
    with pytest.raises(UserError, match=r"--address='http://127\.0\.0\.1:9'"):
        connect("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("machines", "url", "kind", "refused"),
    [
        (["a", "a"], "store", "ext4", False),
        (["a", "b"], "store", "ext4", True),
        (["a", "b"], "store", "nfs4", False),
        (["a", "b"], "s3://bucket/store", "ext4", False),
        (["a", "b"], "file:///store", "ext4", True),
    ],
)
def test_a_folder_of_one_machine_is_refused_on_several(
    machines: list[str], url: str, kind: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "NodeManagerHostname": name} for name in machines]
    nodes.append({"Alive": False, "NodeManagerHostname": "gone"})
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "_file_system", lambda path: kind)
    if refused:
        with pytest.raises(UserError, match=r"store='.*2 machines"):
            cluster.require_shared(url, setting="store")
    else:
        cluster.require_shared(url, setting="store")


def free_port() -> int:
    """A port below those that the kernel hands to outgoing connections: none takes it before its server starts."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


class TwoNodes:
    """A head without CPUs and a worker, started as a user starts them, with a token."""

    def __init__(self, folder: Path) -> None:
        self.dashboard, address = f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.folder, self.address = folder, address
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        bin_ = str(Path(sys.executable).parent)
        self.env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        http, port = self.dashboard.rpartition(":")[2], address.rpartition(":")[2]
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.start("--head", f"--port={port}", "--num-cpus=0", "--dashboard-host=127.0.0.1",
                   f"--dashboard-port={http}", f"--temp-dir={folder}/ray")  # fmt: skip
        try:
            wait_for(self.dashboard)
            self.start(f"--address={address}", "--num-cpus=4")
        except Exception:  # a head without its node would go on for ever
            self.stop()
            raise

    def start(self, *words: str) -> None:
        """One node; it stays in the foreground, so that stopping it touches no other cluster of the machine.

        Ray gives a node 30 s to start and then gives up; on a busy machine it is started again.
        """
        ports = [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        for _ in range(3):
            log = self.folder / f"{uuid.uuid4().hex}.log"
            with log.open("wb") as output:
                node = subprocess.Popen([*command, *ports, *words], env=self.env, stdout=output, start_new_session=True)
            while node.poll() is None:
                if b"Ray runtime started" in log.read_bytes():
                    self.nodes.append(node)
                    return
                time.sleep(0.5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        raise RuntimeError(log.read_text())

    def stop(self) -> None:
        """Ends the nodes and what they started."""
        for node in reversed(self.nodes):
            if node.poll() is not None:
                continue
            children = psutil.Process(node.pid).children(recursive=True)
            node.terminate()
            node.wait(60)
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()

    def raydapt(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command, env = [sys.executable, "-m", "raydapt.cli", *words], self.env | variables
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def wait_for(url: str) -> None:
    """Until something answers there, if only that a token is missing."""
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(url)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    # Not in pytest's folder: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        nodes = TwoNodes(Path(folder))
        yield nodes
        nodes.stop()


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_gives_what_this_machine_gives(two_nodes: TwoNodes, tmp_path: Path, ray_cluster: None) -> None:
    settings = ["jobs/cpl.yaml", *SMALL]
    pipeline.run(load_config(ROOT / settings[0], [*SMALL, f"store={tmp_path}/a", f"runs={tmp_path}/ra"]))
    sending = [*settings, f"store={tmp_path}/b", f"runs={tmp_path}/rb", "--address", two_nodes.dashboard]
    first = two_nodes.raydapt("submit", *sending)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "ray job submit" in first.stdout
    assert ": submitted" in first.stdout
    assert "INFO" not in first.stderr  # what Ray tells of packages that it makes and sends
    metrics = [
        json.loads(next((tmp_path / runs).glob("*/metrics.json")).read_text())["adapted"] for runs in ("ra", "rb")
    ]
    assert metrics[0] == metrics[1]

    again = two_nodes.raydapt("submit", *sending)  # succeeded already: attached, nothing runs twice
    assert again.returncode == 0
    assert "there already" in again.stdout
    assert "succeeded" in two_nodes.raydapt("submit", *sending, "--status").stdout
    wrong = two_nodes.raydapt("submit", "jobs/cpl.yaml", "data.source=no/such/folder", "--address", two_nodes.dashboard)
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    (tmp_path / "other").write_text("0" * 64)
    stranger = two_nodes.raydapt("submit", *sending, RAY_AUTH_TOKEN_PATH=str(tmp_path / "other"))
    assert stranger.returncode == 2
    assert "token" in stranger.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_nests_training_in_its_trials(two_nodes: TwoNodes, tmp_path: Path) -> None:
    settings = [
        *("data.limit=200", "train.max_steps_per_round=3", "cpl.rounds=2", "train.workers=2", "tune.trials=2"),
        *("train.cpus_per_worker=1", "tune.scheduler=median", "tune.grace=1", "tune.cpus_per_trial=0.5"),
        "space={train.learning_rate:{choice:[0.01,0.1]}}",
        *(f"store={tmp_path}/store", f"runs={tmp_path}/runs", f"ray.address={two_nodes.address}", "name=sweep"),
    ]
    told = two_nodes.raydapt("tune", "jobs/tune.yaml", *settings)
    assert told.returncode == 0, told.stdout + told.stderr
    result = json.loads((tmp_path / "runs" / "sweep" / "tune.json").read_text())
    assert {trial["state"] for trial in result["trials"]} <= {"finished", "stopped"}
    assert len({trial["settings"].get("train.learning_rate") for trial in result["trials"]}) == 2
    assert (tmp_path / "runs" / "sweep" / "chosen.yaml").exists()
