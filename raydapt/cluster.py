"""The Ray cluster that a run uses: joined or started, once, and only when a stage needs it."""

import logging
import os
from typing import Any

import ray

from raydapt.config import RaySettings
from raydapt.errors import UserError

# Actors and Train workers wait for each other for ever when a laptop's two cores are all taken: logical CPUs are free.
_LEAST_LOGICAL_CPUS = 4


def ensure_ray(settings: RaySettings) -> None:
    """Connects to the cluster of the settings; does nothing when this process is connected already.

    Raises:
        UserError: When there is no cluster at the address.
    """
    if ray.is_initialized():
        return
    address = settings.address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A local cluster opens no dashboard: nobody has to secure what does not run.
    start: dict[str, Any] = {}
    if address == "local":
        start = {"num_cpus": _logical_cpus(settings), "include_dashboard": False}
    try:
        _init(address, start)
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Setting ray.address={settings.address!r}: no Ray cluster answers there ({reason}): start one with "
            "'ray start --head', or set ray.address=local."
        ) from None


def _init(address: str, start: dict[str, Any]) -> None:
    """Connects; a busy machine may take longer than the fixed 30 s that Ray gives a new node, so it has three tries."""
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
