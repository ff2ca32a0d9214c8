"""How a stage uses Ray: what it works with, the one place that sets Ray Data's options, how many actors it gets."""

import logging
import math
from dataclasses import dataclass
from operator import attrgetter

from raydapt.cluster.nodes import address_of, capacity, require_nodes, selector
from raydapt.errors import UserError
from raydapt.settings.groups import DataSettings, RaySettings, StageSettings
from raydapt.store.artefact import Store

_MEBIBYTE = 1024 * 1024
_LEAST_IN_FLIGHT = 256 * _MEBIBYTE


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What every stage that reads images works with."""

    store: Store
    """Where artefacts live."""
    ray: RaySettings
    """The cluster; not touched when the artefact is there."""
    settings: StageSettings
    """How the stage is spread."""
    data: DataSettings
    """Limits of decoding and the largest share of bad rows."""


@dataclass(frozen=True, kw_only=True)
class ActorPlan:
    """The resolved pool: so many actors with so many CPUs and GPUs each, on nodes with these labels."""

    actors: int
    cpus: float
    gpus: float
    nodes: dict[str, str] | None = None


def plan_actors(settings: StageSettings, *, parts: int, ray_settings: RaySettings, key: str = "features") -> ActorPlan:
    """Resolves ``auto`` against the connected cluster: one actor per GPU, else per two CPUs and two parts.

    Args:
        settings: The stage's settings.
        parts: Parts still to be made.
        ray_settings: Which nodes hold the actors, and whether the cluster can grow.
        key: Name of the group of settings, for messages.

    Raises:
        UserError: If a local cluster can never hold what the settings ask for, or no node of another one comes that
            can hold a single actor; Ray would wait for ever.
    """
    gpus_wanted = 0.0 if settings.gpus_per_actor == "auto" else settings.gpus_per_actor
    local = address_of(ray_settings) == "local"
    if not local:
        need = {"CPU": settings.cpus_per_actor, "GPU": gpus_wanted}
        blamed = "ray.model_nodes" if ray_settings.model_nodes else f"{key}.gpus_per_actor"
        require_nodes(ray_settings, ray_settings.model_nodes, need, setting=blamed)
    have = capacity(ray_settings.model_nodes)
    cpus, gpus = have["CPU"], have["GPU"]
    gpus_each = (1.0 if gpus >= 1 else 0.0) if settings.gpus_per_actor == "auto" else settings.gpus_per_actor
    if settings.actors != "auto":
        actors = settings.actors
    elif gpus_each:
        actors = max(1, int(gpus / gpus_each))
    else:
        actors = max(1, min(int(cpus // 2), parts // 2))  # starting one costs as much as the work of a part or two
    actors = max(1, min(actors, parts))
    # One more CPU, since the readers that feed the actors need one, unless they have nodes of their own.
    needed = actors * settings.cpus_per_actor + (ray_settings.decode_nodes == ray_settings.model_nodes)
    if local and (needed > cpus or actors * gpus_each > gpus):
        raise UserError(
            f"Setting {key}.actors={settings.actors} needs {needed:g} CPUs and {actors * gpus_each:g} GPUs, the "
            f"cluster has {cpus:g} and {gpus:g}: lower {key}.actors, {key}.cpus_per_actor or {key}.gpus_per_actor, "
            "or raise ray.cpus."
        )
    nodes = selector(ray_settings.model_nodes)
    return ActorPlan(actors=actors, cpus=settings.cpus_per_actor, gpus=gpus_each, nodes=nodes)


def plan_here(settings: StageSettings, *, gpu: bool) -> ActorPlan:
    """What an actor of this stage would have, for its code in this process."""
    gpus = float(gpu) if settings.gpus_per_actor == "auto" else settings.gpus_per_actor
    return ActorPlan(actors=1, cpus=settings.cpus_per_actor, gpus=gpus)


def configure(*, block_bytes: int = 128 * _MEBIBYTE, in_flight_bytes: float = math.inf) -> None:
    """Sets Ray Data's options for the datasets that are built next.

    Args:
        block_bytes: Blocks grow up to this size; a row is never divided.
        in_flight_bytes: What may lie in the object store between the operators, at least 256 MiB; Ray's own limit, a
            share of the store, holds besides.
    """
    from ray.data import DataContext

    _hand_actors_their_arguments()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = block_bytes
    context.target_min_block_size = min(block_bytes, _MEBIBYTE)
    options = context.execution_options
    options.preserve_order = False
    options.verbose_progress = False
    options.resource_limits = options.resource_limits.copy(object_store_memory=max(in_flight_bytes, _LEAST_IN_FLIGHT))
    context.execution_options = options
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _hand_actors_their_arguments() -> None:
    """Lets Ray Data's actors have their constructor arguments within the task that makes them.

    Ray Data puts them into the object store of the driver's node, a few kilobytes, and hands over references, which an
    actor that Ray starts again may find evicted; Ray complains of that on standard error each time (ray issues 53727
    and 57733, open in 2.60). What is handed over by value is part of the actor's description, wherever it starts.
    """
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    for reference, value in (("_map_transformer_ref", "_map_transformer"), ("_data_context_ref", "data_context")):
        setattr(ActorPoolMapOperator, reference, property(attrgetter(value)))
