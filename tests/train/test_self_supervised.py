"""The small network of ``model.second: self``: its loss, its training and its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.artefacts.second import load_network, network_bytes
from raydapt.data.decode import ImageSpec
from raydapt.models.self_supervised import WIDTH, SmallNet, contrast_loss
from raydapt.models.views import contrast_view
from raydapt.settings.groups import RaySettings, SecondSettings, TrainSettings
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe
from raydapt.train.checkpoint import from_bytes, to_bytes
from raydapt.train.place import WorkerContext
from raydapt.train.self_supervised import SelfJob, drawn, train_self

CPU = WorkerContext(device=torch.device("cpu"))
QUICK = SecondSettings(size_px=16, steps=6, batch_size=8)


def pictures(n: int = 12) -> Tensor:
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def job(settings: SecondSettings = QUICK, every_s: float = 0.0) -> SelfJob:
    return SelfJob(
        settings=settings,
        n_images=12,
        position_D=torch.arange(12),
        pixel_D3SS=pictures(),
        checkpoint_every_s=every_s,
    )


class Kept:
    """Checkpoints in memory; stops after so many."""

    def __init__(self, data: bytes | None = None, stop_after: int = 10**6) -> None:
        self.data, self.left = data, stop_after

    def load(self) -> bytes | None:
        return self.data

    def save(self, data: bytes | None, metrics: Mapping[str, Any]) -> None:
        self.data, self.left = data, self.left - 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("n", "temperature"), [(2, 0.5), (5, 0.2), (7, 1.0)])
def test_the_loss_is_the_naive_one(n: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(n)
    first, second = (F.normalize(torch.randn(n, 6, generator=generator), dim=1) for _ in range(2))
    views, losses = [*first, *second], []
    for i, view in enumerate(views):
        other = views[(i + n) % (2 * n)]
        total = sum(torch.exp(view @ views[k] / temperature) for k in range(2 * n) if k != i)
        losses.append(-torch.log(torch.exp(view @ other / temperature) / total))
    torch.testing.assert_close(contrast_loss(first, second, temperature), torch.stack(losses).mean())


def test_views_are_drawn_anew_and_stay_in_range() -> None:
    torch.manual_seed(0)
    one, other = (contrast_view(pictures(), 16, least_area=0.3, flip=True) for _ in range(2))
    assert one.shape == (12, 3, 16, 16)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 255
    assert not torch.allclose(one, other)


def test_a_training_taken_up_ends_as_one_that_was_never_stopped() -> None:
    whole = job()(CPU, Kept(), lambda line: None)
    stopped = Kept(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        job()(CPU, stopped, lambda line: None)
    state = from_bytes(stopped.data or b"")
    assert (state.step, state.finished) == (3, False)
    resumed = job()(CPU, Kept(to_bytes(state)), lambda line: None)
    assert resumed.step == whole.step == QUICK.steps
    for name, tensor in whole.method.items():
        torch.testing.assert_close(resumed.method[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_seeds_differ_and_learning_lowers_the_loss() -> None:
    settings = SecondSettings(size_px=16, steps=60, batch_size=12)
    state = job(settings, every_s=1e9)(CPU, Kept(), lambda line: None)
    assert state.lines[-1]["loss"] < state.lines[0]["loss"]
    one, other = (
        job(SecondSettings(size_px=16, steps=1, batch_size=8, seed=seed))(CPU, Kept(), lambda line: None)
        for seed in (0, 1)
    )
    assert not torch.equal(one.method["layers.0.weight"], other.method["layers.0.weight"])


def test_the_artefact_holds_the_network_and_is_found_again(tmp_path: Path) -> None:
    recipe, store = Recipe(kind="self_encoder", settings={}, inputs=()), Store(str(tmp_path))
    made = []
    for _ in range(2):
        before = torch.random.get_rng_state()
        made.append(
            train_self(recipe, job(), train=TrainSettings(), ray_settings=RaySettings(progress=False), store=store)
        )
        assert torch.equal(torch.random.get_rng_state(), before)
    assert [result.reused for result in made] == [False, True]
    assert torch.equal(torch.random.get_rng_state(), before)
    artefact = made[0].artefact
    assert artefact.manifest.stats["steps"] == QUICK.steps
    assert not artefact.folder.exists("checkpoint.safetensors")
    encoder = load_network(network_bytes(artefact), ImageSpec(size_px=16), artefact.fingerprint)
    state = job()(CPU, Kept(), lambda line: None)
    net = SmallNet()
    net.load_state_dict(state.method)
    feature_ND = net.eval()(pictures().float())
    expected = F.normalize(feature_ND - feature_ND.mean(dim=0), dim=1)
    torch.testing.assert_close(encoder.encode_image(pictures()), expected, rtol=1e-4, atol=1e-5)
    assert encoder.embed_dim == WIDTH


def test_of_a_large_set_only_the_images_that_the_steps_draw_are_needed():
    """The network is the one that all images would give; what is taken off its features is the mean of those."""
    pixel_M3SS = pictures(90)
    place_D = drawn(QUICK, 90)
    assert len(place_D) == QUICK.steps * QUICK.batch_size  # no image is seen twice within a pass
    assert torch.equal(drawn(QUICK, 48), torch.arange(48))
    ends = [
        SelfJob(
            settings=QUICK, n_images=90, position_D=position_D, pixel_D3SS=pixel_M3SS[position_D], checkpoint_every_s=9
        )(CPU, Kept(), lambda line: None)
        for position_D in (place_D, torch.arange(90))
    ]
    for name, tensor in ends[0].method.items():
        assert torch.equal(tensor, ends[1].method[name])
