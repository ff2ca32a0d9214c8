"""Which nodes of the cluster do what: decoding on CPU nodes, models on GPU nodes, told apart by node labels.

Ray places nothing on a node without the label, and waits for one for ever. So before a stage or a training starts,
its needs are held against the nodes there are; on a cluster that can grow they are asked for and awaited. Ray is
imported where it is used: what stays in this process does without.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from raydapt.cluster.addresses import plain_address
from raydapt.errors import UserError
from raydapt.settings.groups import RaySettings

_LOG = logging.getLogger(__name__)
_POLL_S = 1.0


def selector(label: str | None) -> dict[str, str] | None:
    """Ray's label selector of a setting ``key=value``; None for any node."""
    if label is None:
        return None
    key, _, value = label.partition("=")
    return {key: value}


def address_of(settings: RaySettings) -> str:
    """Where the cluster is; ``local`` is one of this process, which never grows."""
    if (address := plain_address(settings.address)) != "auto":
        return address
    return plain_address(os.environ.get("RAY_ADDRESS", "")) or "local"


def may_stay(settings: RaySettings) -> bool:
    """Whether work may be done in this process: not where the settings name ``local``, a cluster or a kind of node."""
    named = plain_address(settings.address) != "auto" or plain_address(os.environ.get("RAY_ADDRESS", "")) not in (
        "",
        "local",
    )
    return not (named or settings.decode_nodes or settings.model_nodes or _has_several_nodes())


def capacity(label: str | None = None) -> dict[str, float]:
    """What the living nodes with the label have in all; CPU and GPU always stand there."""
    total = {"CPU": 0.0, "GPU": 0.0}
    for node in _nodes(label):
        for name, amount in node["Resources"].items():
            total[name] = total.get(name, 0.0) + amount
    return total


def require_cpu(settings: RaySettings, label: str | None, *, setting: str) -> dict[str, str] | None:
    """Returns the label's selector when there is, or comes, a node with it that has a CPU.

    Args:
        settings: See `require_nodes`.
        label: ``key=value``, or None for any node.
        setting: Name of the setting that holds the label, for the message.

    Raises:
        UserError: When there is no such node in time.
    """
    require_nodes(settings, label, {"CPU": 1.0}, setting=setting if label else "ray.cpus")
    return selector(label)


def require_nodes(
    settings: RaySettings, label: str | None, need: Mapping[str, float], *, count: int = 1, setting: str
) -> None:
    """Returns when nodes with the label can hold `count` times `need`, busy or not.

    Args:
        settings: A local cluster never grows; another one is asked for nodes and given ``wait_for_nodes_s``.
        label: ``key=value``, or None for any node.
        need: Resources of one actor or worker.
        count: How many of them.
        setting: Name of the setting that asks for it, for the message.

    Raises:
        UserError: When there is no such node in time.
    """
    need = {name: amount for name, amount in need.items() if amount}
    if _room(label, need) >= count:
        return
    patience = 0.0 if address_of(settings) == "local" else settings.wait_for_nodes_s
    if patience:
        from ray.autoscaler.sdk import request_resources

        _LOG.warning(f"waiting up to {patience:g} s for {_words(label, need, count)} (ray.wait_for_nodes_s)")
        request_resources(bundles=[dict(need)] * count, bundle_label_selectors=[selector(label) or {}] * count)
    deadline = time.monotonic() + patience
    try:
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            if _room(label, need) >= count:
                return
    finally:
        if patience:
            request_resources(bundles=[])  # what runs is what keeps the nodes from here on
    raise UserError(_sentence(settings, label, need, count, setting))


def _has_several_nodes() -> bool:
    """Whether this process is connected to several nodes, as a driver within a cluster is; imports no Ray."""
    connected = sys.modules.get("ray")
    return connected is not None and connected.is_initialized() and len(connected.nodes()) > 1


def _room(label: str | None, need: Mapping[str, float]) -> int:
    """How many times the nodes hold what is needed; a need is never divided between nodes."""
    fits = 0
    for node in _nodes(label):
        have = node["Resources"]
        # Fractions of 0.1 and the like add up to a hair more than they should.
        fits += min((int(have.get(name, 0.0) / amount + 1e-6) for name, amount in need.items()), default=1)
    return fits


def _nodes(label: str | None) -> list[dict[str, Any]]:
    import ray

    wanted = (selector(label) or {}).items()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"] and wanted <= node["Labels"].items()]


def _words(label: str | None, need: Mapping[str, float], count: int) -> str:
    amounts = " and ".join(f"{amount:g} {name}" for name, amount in need.items()) or "nothing"
    return f"{f'{count} times ' if count > 1 else ''}{amounts} on a node{f' labelled {label}' if label else ''}"


def _sentence(settings: RaySettings, label: str | None, need: Mapping[str, float], count: int, setting: str) -> str:
    have, nodes = capacity(label), len(_nodes(label))
    local = address_of(settings) == "local"
    waited = "" if local else f" after {settings.wait_for_nodes_s:g} s"
    if local:
        way_out = "raise ray.cpus, or set ray.address to a cluster that has it"
    else:
        way_out = f"start nodes with 'ray start --labels={label}'" if label else "start nodes that have it"
        way_out += ", raise ray.wait_for_nodes_s"
    return (
        f"Setting {setting} needs {_words(label, need, count)}, but{waited} the cluster has {nodes} such "
        f"node{'' if nodes == 1 else 's'} with {have['CPU']:g} CPUs and {have['GPU']:g} GPUs in all: {way_out}, or "
        f"change {setting}."
    )
