"""How many trials fit at a time, and on which nodes they are placed."""

import inspect
from typing import Any

import pytest
from ray.util.placement_group import placement_group

from raydapt.errors import UserError
from raydapt.methods.configuration import config_from_tree
from raydapt.tune import tuner
from raydapt.tune.tuner import trial_resources
from tests.stages.test_context import CPU_NODES, GPU_NODES, node

THERE = [node(CPU=0), node(GPU_NODES, CPU=8, GPU=1), node(GPU_NODES, CPU=8, GPU=1), node(CPU_NODES, CPU=64)]
ON_GPU_NODES = {"ray": {"address": "head:6379", "model_nodes": GPU_NODES}}


@pytest.mark.parametrize(
    ("tree", "bundle", "concurrent", "labels"),
    [
        ({}, {"CPU": 1.0, "GPU": 0.25}, 8, None),
        (ON_GPU_NODES, {"CPU": 1.0, "GPU": 0.25}, 8, [{"raydapt": "gpu"}]),
        (ON_GPU_NODES | {"tune": {"gpus_per_trial": 0}}, {"CPU": 1.0}, 16, [{"raydapt": "gpu"}]),
        # Trials that nest Ray Train drive it from any node; it is their workers that have to fit.
        (ON_GPU_NODES | {"train": {"workers": 4, "cpus_per_worker": 2}}, {"CPU": 1.0}, 2, None),
    ],
)
def test_trials_are_counted_and_placed_on_the_nodes_that_hold_models(
    monkeypatch: pytest.MonkeyPatch, tree: dict[str, Any], bundle: dict[str, float], concurrent: int, labels: Any
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [*THERE, node(GPU_NODES, alive=False, CPU=8, GPU=8)])
    monkeypatch.setattr(tuner, "_require_dashboard", lambda workers: None)
    factory, at_a_time = trial_resources(config_from_tree(tree))
    assert factory.bundles == [bundle]
    assert at_a_time == concurrent
    asked: list[dict[str, Any]] = []
    signature = inspect.signature(placement_group)
    monkeypatch.setattr(
        "ray.air.execution.resources.request.placement_group",
        lambda *given, **words: asked.append(signature.bind(*given, **words).arguments),
    )
    factory.to_placement_group()
    assert asked[0].get("bundle_label_selector") == labels


def test_too_much_for_the_labelled_nodes_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: THERE)
    tree = ON_GPU_NODES | {"tune": {"cpus_per_trial": 32, "gpus_per_trial": 0}}
    with pytest.raises(UserError, match=rf"16 CPUs and 2 GPUs of the cluster on nodes labelled {GPU_NODES}"):
        trial_resources(config_from_tree(tree))
