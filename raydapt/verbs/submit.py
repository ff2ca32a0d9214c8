"""`raydapt submit`: a job sent to a running cluster through the Ray Jobs API, followed, or found again.

The submission id is a digest of the settings, so the same command a second time attaches to the job that runs already.
"""

import asyncio
import contextlib
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from raydapt.cluster.addresses import leave_loopback_alone, through_proxy
from raydapt.errors import UserError
from raydapt.methods.configuration import load_job
from raydapt.methods.table import TABLE
from raydapt.progress import said_if_slow
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree
from raydapt.store.fingerprint import fingerprint

EXCLUDES = (
    ".git",
    ".venv",
    "runs",
    "store",
    "*.egg-info",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
)
"""What of a checkout is not sent: a working directory travels to every node, and Ray refuses one above 512 MiB."""
PASSED_ON = ("RAYDAPT_DATA", "HF_HUB_OFFLINE", "HF_HOME", "VLLM_CPU_KVCACHE_SPACE", "RAY_USAGE_STATS_ENABLED")
"""Variables that a job gets from this shell. What travels this way stands in the dashboard: never add a secret."""
_STRONGER = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that tell how the working directory is packed and when a connection ends."""
_POLL_S = 2.0
_AGENT_S = 180.0
"""How long a cluster that has just started is given until it can take a job."""
_FINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is sent.

    Attributes:
        submission_id: The same for the same settings and verb.
        entrypoint: The command that the head node runs.
        working_dir: Folder that travels with it.
        environment: Variables that travel with it.
    """

    submission_id: str
    entrypoint: str
    working_dir: str
    environment: Mapping[str, str]

    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment of the job."""
        return {"working_dir": self.working_dir, "excludes": list(EXCLUDES), "env_vars": dict(self.environment)}

    def command_line(self, address: str) -> str:
        """The ``ray job submit`` line that does the same."""
        words = ["ray", "job", "submit", "--address", address, "--submission-id", self.submission_id]
        words += ["--runtime-env-json", json.dumps(self.runtime_env()), "--no-wait", "--"]
        return shlex.join(words) + " " + self.entrypoint


def prepare(
    job: str, overrides: Sequence[str], *, verb: str = "run", variables: Sequence[str] = (), working_dir: str = "."
) -> Submission:
    """Checks a job as it would run on the cluster, and says what would be sent.

    Args:
        job: A job file below ``working_dir``, the name of a method, or an override.
        overrides: ``key=value`` settings on top.
        verb: The verb that runs it there.
        variables: Names of further environment variables to pass on, beyond `PASSED_ON`.
        working_dir: Folder that travels: it holds the job file, and the package where the nodes do not have it.

    Raises:
        UserError: For settings that are not valid, a job file outside the folder, or a variable that looks secret.
    """
    root = Path(working_dir).resolve()
    if not root.is_dir():
        raise UserError(f"Option --working-dir={working_dir!r} is no folder: give one, an empty one will do.")
    config = load_job(job, overrides, recipe="tune" if verb == "tune" else None)
    secret = [name for name in variables if any(word in name.upper() for word in _SECRET_WORDS)]
    if secret:
        raise UserError(
            f"Variable {secret[0]!r} looks like a secret, and whatever a job is given stands in the dashboard: give it "
            "to the nodes instead (Kubernetes secret, instance role)."
        )
    names = [*PASSED_ON, *variables]
    words = ["python", "-m", "raydapt.cli", verb, _sent(job, root), *overrides, "ray.address=auto"]
    return Submission(
        submission_id=submission_id(config, verb),
        entrypoint=shlex.join(words),
        working_dir=str(root),
        environment={name: os.environ[name] for name in names if name in os.environ},
    )


def _sent(job: str, root: Path) -> str:
    """The job as the cluster knows it: a file by its place in the folder that travels, anything else as it is."""
    path = Path(job).resolve()
    if "=" in job or job in TABLE:
        return job
    if not path.is_relative_to(root):
        raise UserError(
            f"Job file {job!r} is not below the working directory {str(root)!r}, which is all that travels to the "
            "cluster: copy it there, or give --working-dir."
        )
    return str(path.relative_to(root))


def submission_id(config: Config, verb: str) -> str:
    """``raydapt-METHOD-DIGEST``, the digest over all settings but those of the cluster connection."""
    tree = as_tree(config)
    del tree["ray"]
    return f"raydapt-{config.method}-{fingerprint('submission', {'verb': verb, **tree}, [])}"


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's Jobs API.

    Raises:
        UserError: When nothing answers there, or it wants a token.
    """
    leave_loopback_alone()
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _without_variables():
            client = JobSubmissionClient(address)
        client.get_version()
    except (ConnectionError, RuntimeError, RayError) as error:
        text = " ".join(str(error).split())
        hint = (
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
            if "oken" in text or "401" in text
            else "give the dashboard's address, such as http://127.0.0.1:8265, and open a tunnel if it is remote"
        )
        way = through_proxy(address)
        raise UserError(
            f"Option --address={address!r}: no Jobs API answers there{way} ({text[:200]}): {hint}."
        ) from None
    return client


@contextlib.contextmanager
def _without_variables() -> Iterator[None]:
    """Within it, Ray knows no variable that it would believe more than the address it is given."""
    kept = {name: os.environ.pop(name) for name in _STRONGER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def submit(client: JobSubmissionClient, submission: Submission) -> bool:
    """Starts the job unless the same one waits, runs or has succeeded.

    A job that failed or was stopped is deleted from the list and started anew: it resumes from the store.

    Returns:
        Whether it was started now; False when there is one to attach to.

    Raises:
        UserError: When the cluster has nothing that could run a job.
    """
    state = status(client, submission.submission_id)
    if state in (JobStatus.FAILED, JobStatus.STOPPED):
        client.delete_job(submission.submission_id)
    elif state is not None:
        return False
    with said_if_slow("sending the job to the cluster …"):
        _start(client, submission)
    return True


def _start(client: JobSubmissionClient, submission: Submission) -> None:
    """Starts the job; the agents that run jobs come up a while after the dashboard answers."""
    deadline = time.monotonic() + _AGENT_S
    while True:
        try:
            client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=submission.submission_id,
                runtime_env=submission.runtime_env(),
                entrypoint_num_cpus=0,  # the driver plans and commits; it may sit on a head that offers no CPU
            )
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise UserError(
                    f"The cluster has had no agent that runs jobs for {_AGENT_S:g} s. Another Ray on that machine "
                    "may hold its port: start the head with --dashboard-agent-listen-port=PORT, then submit again."
                ) from None
            time.sleep(_POLL_S)
        else:
            return


def status(client: JobSubmissionClient, submission_id_: str) -> JobStatus | None:
    """The state of a job; None when the cluster knows no such job."""
    for job in client.list_jobs():
        if job.submission_id == submission_id_:
            return JobStatus(job.status)
    return None


def state_line(client: JobSubmissionClient, submission: Submission) -> str:
    """The job's state in words, with Ray's message where there is one."""
    if status(client, submission.submission_id) is None:
        return f"{submission.submission_id}: not on this cluster"
    info = client.get_job_info(submission.submission_id)
    return f"{submission.submission_id}: {str(info.status).lower()}" + (f" ({info.message})" if info.message else "")


def stop(client: JobSubmissionClient, submission_id_: str) -> str:
    """Asks the cluster to stop the job, and says what happened."""
    state = status(client, submission_id_)
    if state is None or state in _FINAL:
        return f"{submission_id_}: {'not on this cluster' if state is None else 'ended already'}"
    client.stop_job(submission_id_)
    return f"{submission_id_}: stopping; what is committed is kept"


def send(client: JobSubmissionClient, submission: Submission, write: Callable[[str], None], *, wait: bool) -> int:
    """Starts the job or attaches to it, follows its log where that is wanted, and returns its exit code."""
    started = submit(client, submission)
    write(f"{submission.submission_id}: {'submitted' if started else 'there already, attached to it'}\n")
    if not wait:
        return 0
    follow(client, submission.submission_id, write)
    write(state_line(client, submission) + "\n")
    return exit_code(client, submission.submission_id)


def follow(client: JobSubmissionClient, submission_id_: str, write: Callable[[str], None]) -> JobStatus:
    """Writes the job's log as it comes, until the job ends; a stream that breaks is taken up where it broke."""
    written = 0
    while True:
        with contextlib.suppress(RuntimeError, aiohttp.ClientError):
            written = asyncio.run(_tail(client, submission_id_, write, written))
        state = client.get_job_status(submission_id_)
        if state in _FINAL:
            write(client.get_job_logs(submission_id_)[written:])  # what came after the stream had closed
            return state
        time.sleep(_POLL_S)


async def _tail(client: JobSubmissionClient, submission_id_: str, write: Callable[[str], None], written: int) -> int:
    """Writes what follows the first ``written`` characters of the log; returns how many there are now."""
    seen = 0
    async for text in client.tail_job_logs(submission_id_):
        fresh = text[max(0, written - seen) :]
        seen += len(text)
        if fresh:
            write(fresh)
    return max(seen, written)


def exit_code(client: JobSubmissionClient, submission_id_: str) -> int:
    """0 for success; the driver's own exit code for a failure (2 for a user's mistake), else 1."""
    info = client.get_job_info(submission_id_)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return int(info.driver_exit_code or 1)
