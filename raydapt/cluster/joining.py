"""The Ray cluster that a run uses: joined or started, once, and only when a stage needs it."""

import logging
import os
from pathlib import Path
from typing import Any

import psutil

from raydapt.cluster.addresses import check_address, given_address, has_place, plain_address
from raydapt.cluster.nodes import address_of
from raydapt.cluster.temp_folder import temp_folder
from raydapt.errors import UserError
from raydapt.progress import said_if_slow
from raydapt.settings.groups import RaySettings
from raydapt.store.folder import Folder

# Actors and Train workers wait for each other for ever when a laptop's two cores are all taken: logical CPUs are free.
_LEAST_LOGICAL_CPUS = 4
# File systems that several machines see alike.
_SHARED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "fuse", "9p", "virtiofs")


def ensure_ray(settings: RaySettings) -> None:
    """Connects to the cluster of the settings; does nothing when this process is connected already.

    Raises:
        UserError: When there is no cluster at the address.
    """
    import ray

    if ray.is_initialized():
        return
    address = address_of(settings)
    if variable := os.environ.get("RAY_ADDRESS"):
        os.environ["RAY_ADDRESS"] = plain_address(variable)  # Ray reads it itself where the address is 'auto'
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A local cluster opens no dashboard: nobody has to secure what does not run.
    start: dict[str, Any] = {}
    if address == "local":
        folder = temp_folder()
        start = {"num_cpus": _logical_cpus(settings), "include_dashboard": False, "_temp_dir": f"{folder}/ray"}
    given = given_address(settings)
    check_address(address, given)
    doing = "starting Ray on this machine …" if address == "local" else f"joining the Ray cluster at {address} …"
    try:
        with said_if_slow(doing):
            _init(address, start)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "parsed from Address" not in str(error):
            raise  # Ray takes any other scheme for the name of a module
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        if has_place(address):
            raise UserError(
                f"{given}: a server answers there, but Ray does not join it ({reason}): where the cluster wants a "
                "token, export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH; otherwise give another "
                "address, or set ray.address=local."
            ) from None
        raise UserError(
            f"{given}: no Ray cluster answers there ({reason}): start one with "
            "'ray start --head', or set ray.address=local."
        ) from None


def require_shared(url: str, *, setting: str) -> None:
    """Refuses a folder of this machine alone when the cluster has others, which would not find what is written there.

    Args:
        url: The folder.
        setting: Name of the setting that gave it.

    Raises:
        UserError: When the connected cluster has several machines and the folder lies on a local disk.
    """
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    machines = {node["NodeManagerHostname"] for node in nodes if node["Alive"]}
    if len(machines) < 2 or ("://" in url and not url.startswith(("file://", "local://"))):
        return
    kind = _file_system(Path(url.partition("://")[2] or url).absolute())
    if not kind.startswith(_SHARED_FILE_SYSTEMS):
        raise UserError(
            f"Setting {setting}={url!r} is a folder of this machine ({kind}), but the cluster has {len(machines)} "
            f"machines: give a shared file system or an s3:// or gs:// address."
        )


def require_reachable(folder: Folder) -> None:
    """Asks every node whether it reaches a folder of an object store.

    Ray Train's controller and workers use the storage from wherever they are, each with its own node's credentials;
    a controller that lacks them dies without a word about the reason.

    Raises:
        UserError: When a node does not reach it.
    """
    if folder.local:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_reason_not_to_reach)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    asked = []  # of all nodes before any answer is awaited
    for node in nodes:
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append((node["NodeManagerHostname"], look.options(scheduling_strategy=there).remote(folder)))
    for name, answer in asked:
        if reason := ray.get(answer):
            raise UserError(
                f"Node {name!r} of the cluster does not reach the storage: {reason} Every node needs them, by "
                "a role of the machine or by variables that are set before 'ray start'."
            )


def _reason_not_to_reach(folder: Folder) -> str | None:
    try:
        folder.sizes()
    except UserError as error:
        return str(error)
    return None


def _file_system(path: Path) -> str:
    """Kind of the file system that a path lies on."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "unknown")


def _init(address: str, start: dict[str, Any]) -> None:
    """Connects; a busy machine may take longer than the fixed 30 s that Ray gives a new node, so it has three tries."""
    import ray

    for tries_left in (2, 1, 0):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **start)
        except Exception as error:
            if "timed out during startup" not in str(error) or not tries_left:
                raise
            ray.shutdown()
        else:
            return


def _logical_cpus(settings: RaySettings) -> int:
    if settings.cpus != "auto":
        return settings.cpus
    return max(_LEAST_LOGICAL_CPUS, os.cpu_count() or 1)
