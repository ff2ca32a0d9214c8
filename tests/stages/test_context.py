from typing import Any

import pytest

from raydapt.cluster import nodes
from raydapt.cluster.nodes import capacity, require_nodes, selector
from raydapt.errors import UserError
from raydapt.settings.groups import RaySettings, StageSettings
from raydapt.settings.language import EngineSettings
from raydapt.stages import llm
from raydapt.stages.context import ActorPlan, plan_actors
from raydapt.stages.llm import plan_engines

LOCAL = RaySettings(address="local")
CPU_NODES, GPU_NODES = "raydapt=cpu", "raydapt=gpu"


def node(label: str = "", *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Labels": selector(label or None) or {}, "Resources": resources}


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "parts", "plan"),
    [
        (4, 0, StageSettings(), 100, ActorPlan(actors=2, cpus=1.0, gpus=0.0)),
        (4, 0, StageSettings(), 1, ActorPlan(actors=1, cpus=1.0, gpus=0.0)),
        (64, 0, StageSettings(), 10, ActorPlan(actors=5, cpus=1.0, gpus=0.0)),
        (64, 0, StageSettings(actors=20), 10, ActorPlan(actors=10, cpus=1.0, gpus=0.0)),
        (64, 4, StageSettings(), 100, ActorPlan(actors=4, cpus=1.0, gpus=1.0)),
        (64, 4, StageSettings(gpus_per_actor=0.5), 100, ActorPlan(actors=8, cpus=1.0, gpus=0.5)),
        (64, 4, StageSettings(gpus_per_actor=0, actors=3, cpus_per_actor=4), 100, ActorPlan(actors=3, cpus=4, gpus=0)),
        (2, 0, StageSettings(), 100, ActorPlan(actors=1, cpus=1.0, gpus=0.0)),
    ],
)
def test_plan(
    monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: float, settings: StageSettings, parts: int, plan: ActorPlan
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [node(CPU=cpus, GPU=gpus)])
    assert plan_actors(settings, parts=parts, ray_settings=LOCAL) == plan


@pytest.mark.parametrize(
    "settings", [StageSettings(actors=4), StageSettings(gpus_per_actor=1), StageSettings(cpus_per_actor=8)]
)
@pytest.mark.parametrize("address", ["local", "auto"])
def test_what_a_local_cluster_can_never_hold(
    monkeypatch: pytest.MonkeyPatch, settings: StageSettings, address: str
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [node(CPU=4.0)])
    monkeypatch.delenv("RAY_ADDRESS")  # nor is one joined
    with pytest.raises(UserError, match=r"features\.actors=.* needs"):
        plan_actors(settings, parts=100, ray_settings=RaySettings(address=address))


def test_pools_are_sized_by_the_nodes_that_hold_models(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [node(CPU=0), node(GPU_NODES, CPU=8, GPU=2), node(GPU_NODES, CPU=8, GPU=1), node(CPU_NODES, CPU=64)]
    monkeypatch.setattr("ray.nodes", lambda: [*there, node(GPU_NODES, alive=False, CPU=8, GPU=8)])
    spread = RaySettings(address="head:6379", decode_nodes=CPU_NODES, model_nodes=GPU_NODES)
    expected = ActorPlan(actors=3, cpus=1.0, gpus=1.0, nodes={"raydapt": "gpu"})
    assert plan_actors(StageSettings(), parts=100, ray_settings=spread) == expected
    assert plan_actors(StageSettings(gpus_per_actor=0.5), parts=100, ray_settings=spread).actors == 6
    assert capacity(CPU_NODES) == {"CPU": 64, "GPU": 0}
    assert capacity()["CPU"] == 80


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the autoscaler was asked for; time passes only by sleeping."""
    requests: list[dict[str, Any]] = []
    clock = [0.0]
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda **words: requests.append(words))
    monkeypatch.setattr(nodes.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(nodes.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr("ray.nodes", lambda: [node(CPU=0), *([node(GPU_NODES, CPU=8, GPU=1)] if clock[0] > 5 else [])])
    return requests


def test_a_cluster_that_can_grow_is_asked_and_awaited(asked: list[dict[str, Any]]) -> None:
    settings = RaySettings(address="head:6379", model_nodes=GPU_NODES)
    require_nodes(settings, GPU_NODES, {"CPU": 1, "GPU": 0.5}, count=2, setting="train.workers")
    wanted = [{"CPU": 1, "GPU": 0.5}] * 2
    assert asked == [{"bundles": wanted, "bundle_label_selectors": [{"raydapt": "gpu"}] * 2}, {"bundles": []}]
    require_nodes(settings, GPU_NODES, {"CPU": 8.0}, setting="x")
    assert len(asked) == 2  # it is there now


@pytest.mark.parametrize(
    ("settings", "label", "need", "words"),
    [
        (
            RaySettings(address="head:6379", wait_for_nodes_s=60),
            CPU_NODES,
            {"CPU": 1},
            ["after 60 s", "0 such nodes"],
        ),
        (
            RaySettings(address="head:6379", wait_for_nodes_s=60),
            GPU_NODES,
            {"GPU": 2},
            ["2 GPU", "1 such node with 8 CPUs"],
        ),
        (
            RaySettings(address="head:6379", wait_for_nodes_s=0),
            None,
            {"GPU": 1},
            ["start nodes that have it", "0 GPUs in all"],
        ),
        (RaySettings(address="local"), CPU_NODES, {"CPU": 1}, [f"labelled {CPU_NODES}", "raise ray.cpus"]),
        (RaySettings(), CPU_NODES, {"CPU": 1}, [f"labelled {CPU_NODES}", "raise ray.cpus"]),  # RAY_ADDRESS=local
    ],
)
def test_nodes_that_never_come_are_one_sentence(
    asked: list[dict[str, Any]], settings: RaySettings, label: str | None, need: dict[str, float], words: list[str]
) -> None:
    with pytest.raises(UserError, match=r"Setting ray\.model_nodes needs") as caught:
        require_nodes(settings, label, need, setting="ray.model_nodes")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert asked[-1:] in ([], [{"bundles": []}])  # no request outlives the wait


@pytest.mark.parametrize(
    ("engine", "label", "planned"),
    [
        (EngineSettings(), GPU_NODES, (3, True)),
        (EngineSettings(tensor_parallel=2), GPU_NODES, (1, True)),
        (EngineSettings(replicas=2), GPU_NODES, (2, True)),
        (EngineSettings(), CPU_NODES, (1, False)),
        (EngineSettings(), None, (7, True)),
    ],
)
def test_engines_are_counted_on_the_nodes_that_hold_models(
    monkeypatch: pytest.MonkeyPatch, engine: EngineSettings, label: str | None, planned: tuple[int, bool]
) -> None:
    there = [node(CPU=0), node(GPU_NODES, CPU=8, GPU=2), node(GPU_NODES, CPU=8, GPU=1), node(CPU_NODES, CPU=64)]
    monkeypatch.setattr("ray.nodes", lambda: [*there, node(CPU=8, GPU=4)])
    settings = RaySettings(address="head:6379", model_nodes=label, wait_for_nodes_s=0)
    assert plan_engines(engine, "caption", settings) == planned


def test_an_engine_that_wants_more_gpus_than_there_are_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [node(GPU_NODES, CPU=8, GPU=1), node(CPU=8, GPU=8)])
    settings = RaySettings(address="head:6379", model_nodes=GPU_NODES, wait_for_nodes_s=0)
    with pytest.raises(UserError, match=r"Setting caption\.tensor_parallel needs 2 times 1 GPU .* 1 GPUs in all"):
        plan_engines(EngineSettings(tensor_parallel=2), "caption", settings)


def test_an_engine_over_several_gpus_stays_on_nodes_with_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(llm, "placement_group", lambda bundles, **words: asked.append({"bundles": bundles, **words}))
    strategy = llm.side_by_side([{"GPU": 1.0, "CPU": 1.0}] * 2, {"raydapt": "gpu"})["scheduling_strategy"]
    assert strategy.placement_group_capture_child_tasks
    assert [request["bundle_label_selector"] for request in asked] == [[{"raydapt": "gpu"}] * 2]
