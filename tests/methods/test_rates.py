"""The rates that ``auto`` stands for: ways that are really gone, names that are resolved, no label needed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.rates import UNKNOWN_IMAGES, adamw_rate, sgd_rate, steps_of_round
from raydapt.run.plan import Plan, make_plan
from raydapt.settings.groups import TrainSettings
from raydapt.train.optimizer import cosine_with_warmup, scale_to_unit_length
from tests.data.features import unit, write

NAMES, WIDTH, IMAGES = ["cat", "dog", "sea lake"], 16, 90


def gone(optimizer: torch.optim.Optimizer, vector_CD: torch.nn.Parameter, direction_CD: torch.Tensor, rate: float,
         steps: int) -> torch.Tensor:  # fmt: skip
    """How far each vector is from its start after steps that all point in one direction."""
    start_CD = vector_CD.detach().clone()
    for step in range(steps):
        vector_CD.grad = 7.0 * direction_CD.clone()
        if isinstance(optimizer, torch.optim.SGD):
            scale_to_unit_length([vector_CD])
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine_with_warmup(step, total=steps, warmup=steps // 10)
        optimizer.step()
    return (vector_CD.detach() - start_CD).norm(dim=1)


@pytest.mark.parametrize(("width", "steps"), [(16, 200), (512, 200), (512, 1000)])
def test_adamw_goes_the_way_that_was_asked_for_whatever_width_and_steps(width: int, steps: int) -> None:
    train = TrainSettings(optimizer="adamw", weight_decay=0)
    rate = adamw_rate(0.3, train, steps=steps, width=width)
    vector_CD = torch.nn.Parameter(torch.zeros(3, width))
    optimizer = torch.optim.AdamW([vector_CD], weight_decay=0)
    direction_CD = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).sign()
    assert not rate.unit_gradient
    assert gone(optimizer, vector_CD, direction_CD, rate.learning_rate, steps).numpy() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("classes", "steps"), [(3, 400), (50, 400), (50, 2000)])
def test_sgd_goes_it_whatever_the_number_of_classes_and_steps(classes: int, steps: int, momentum: float) -> None:
    train = TrainSettings(momentum=momentum)
    rate = sgd_rate(0.3, train, steps=steps, n_classes=classes)
    vector_CD = torch.nn.Parameter(torch.zeros(classes, WIDTH))
    optimizer = torch.optim.SGD([vector_CD], momentum=momentum)
    direction_CD = torch.ones(classes, WIDTH)
    assert rate.unit_gradient
    assert gone(optimizer, vector_CD, direction_CD, rate.learning_rate, steps).numpy() == pytest.approx(0.3, rel=0.03)


def test_what_scales_the_vector_divides_the_rate() -> None:
    whole, half = (sgd_rate(0.3, TrainSettings(), steps=10, n_classes=3, scale=scale) for scale in (1.0, 0.5))
    assert half.learning_rate == pytest.approx(2 * whole.learning_rate)


def test_steps_are_counted_as_the_loop_counts_them() -> None:
    train = TrainSettings(epochs=3, batch_size=32)
    assert [steps_of_round(train, n) for n in (10, 64, 100)] == [3, 6, 9]
    assert steps_of_round(TrainSettings(epochs=3, batch_size=32, max_steps_per_round=5), 100) == 5
    assert steps_of_round(train, None) == UNKNOWN_IMAGES // 32 * 3


def test_a_gradient_has_length_one_whatever_it_was_and_zero_stays_zero() -> None:
    one, two, none = (torch.nn.Parameter(torch.zeros(n)) for n in (3, 5, 2))
    for scale in (1e-12, 1.0, 1e6):
        one.grad, two.grad = scale * torch.ones(3), -scale * torch.ones(5)
        scale_to_unit_length([one, two, none])
        assert torch.cat([one.grad, two.grad]).tolist() == pytest.approx([8**-0.5] * 3 + [-(8**-0.5)] * 5)
    one.grad = torch.zeros(3)
    scale_to_unit_length([one])
    assert one.grad.tolist() == [0.0] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features with labels, the same without, and class embeddings."""
    folder, generator = tmp_path_factory.mktemp("rates"), np.random.default_rng(0)
    feature_ND = unit(generator.standard_normal((IMAGES, WIDTH))).astype(np.float32)
    write(folder / "labelled.parquet", feature_ND, label=[NAMES[i % 3] for i in range(IMAGES)])
    write(folder / "bare.parquet", feature_ND)
    write(folder / "classes.parquet", unit(generator.standard_normal((3, WIDTH))).astype(np.float32), name=NAMES)
    return folder


def plan_of(folder: Path, method: str, *overrides: str, source: str = "labelled") -> Plan:
    given = [f"data.source={folder}/{source}.parquet", f"data.class_features={folder}/classes.parquet"]
    captions = (
        ["latteclip.tune=residual", "latteclip.use_image_caption=false", "latteclip.use_batch_caption=false"]
        if method == "latteclip"
        else []
    )
    return make_plan(load_config(None, [f"method={method}", *given, *captions, *overrides]))


PUBLISHED = {"cpl": 0.02, "fpl": 0.1, "grip": 0.1, "fair": 1e-4, "latteclip": 1e-7}


@pytest.mark.parametrize("method", PUBLISHED)
def test_auto_is_a_number_in_the_plan_and_the_same_with_and_without_labels(folder: Path, method: str) -> None:
    labelled, bare = (plan_of(folder, method, source=source).config.train for source in ("labelled", "bare"))
    assert isinstance(labelled.learning_rate, float)
    assert (labelled.learning_rate, labelled.unit_gradient) == (bare.learning_rate, bare.unit_gradient)
    assert labelled.unit_gradient == (method in ("cpl", "fpl", "grip"))
    shorter = plan_of(folder, method, "train.max_steps_per_round=10").config.train
    assert shorter.rate > labelled.rate
    scaled = plan_of(folder, method, "model.logit_scale=16").config.train
    assert scaled.rate == labelled.rate


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_published_rate_has_a_name_and_means_the_number(folder: Path, method: str) -> None:
    named = plan_of(folder, method, "train.learning_rate=published")
    number = plan_of(folder, method, f"train.learning_rate={PUBLISHED[method]}")
    assert named.config.train.learning_rate == PUBLISHED[method]
    assert named.config.train.unit_gradient is False
    assert named.fingerprint == number.fingerprint


def test_a_resolved_rate_stays_what_it_is(folder: Path) -> None:
    auto = plan_of(folder, "cpl")
    train = auto.config.train
    again = plan_of(folder, "cpl", f"train.learning_rate={train.learning_rate}", "train.unit_gradient=true")
    assert again.fingerprint == auto.fingerprint
    other = plan_of(folder, "cpl", f"train.learning_rate={train.learning_rate}")
    assert other.fingerprint != auto.fingerprint


def test_what_has_no_rule_is_said() -> None:
    with pytest.raises(UserError, match=r"train.learning_rate='quick'|train.learning_rate=quick"):
        load_config(None, ["train.learning_rate=quick"])
    with pytest.raises(ValueError, match="resolved before"):
        _ = TrainSettings(learning_rate="auto").rate
    with pytest.raises(UserError, match="knows steps of SGD for prompts"):
        make_plan(load_config(None, ["method=cpl", "train.optimizer=adamw", "data.source=digits"]))


def test_a_text_prompt_takes_the_published_step() -> None:
    train = make_plan(load_config(None, ["method=cpl", "data.source=digits"])).config.train
    assert (train.learning_rate, train.unit_gradient) == (0.016, True)
