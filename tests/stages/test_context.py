import pytest

from raydapt.config import RaySettings, StageSettings
from raydapt.errors import UserError
from raydapt.stages.context import ActorPlan, plan_actors

LOCAL, REMOTE = RaySettings(address="local"), RaySettings(address="ray://head:10001")


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
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": cpus, "GPU": gpus})
    assert plan_actors(settings, parts=parts, ray_settings=LOCAL) == plan


@pytest.mark.parametrize(
    "settings", [StageSettings(actors=4), StageSettings(gpus_per_actor=1), StageSettings(cpus_per_actor=8)]
)
def test_what_a_local_cluster_can_never_hold(monkeypatch: pytest.MonkeyPatch, settings: StageSettings) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(UserError, match=r"features\.actors=.* needs"):
        plan_actors(settings, parts=100, ray_settings=LOCAL)
    assert plan_actors(settings, parts=100, ray_settings=REMOTE).actors >= 1  # that cluster may grow
