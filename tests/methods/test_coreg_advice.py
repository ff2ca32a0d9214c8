"""What ``jobs/coreg-full.yaml`` advises for the sets whose views differ in the authors' code."""

import re
from pathlib import Path

import pytest
import torch

from raydapt.methods.configuration import load_config
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.methods.coreg.spec import SPEC, _views_of
from tests.models.tiny import tiny_clip

JOB = Path(__file__).parents[2] / "jobs" / "coreg-full.yaml"
_ADVICE = re.compile(r"^#   (\S+) +(\S+=\S+(?: \S+=\S+)*)$", re.MULTILINE)
ADVICE = {name: settings.split() for name, settings in _ADVICE.findall(JOB.read_text())}
# Side, padding, mirrored, one random operation, side of the hole: the transforms of the authors' data loaders.
VIEWS = {
    "EuroSAT": (64, 8, True, True, "random"),
    "GTSRB": (64, 8, False, True, "random"),
    "FER2013": (64, 8, True, False, 16),
    "Fashion-MNIST": (28, 4, True, False, 16),
    "SVHN": (32, 4, False, True, "random"),
}
DARK, LIGHT, N = 60, 200, 400


def test_every_set_with_views_of_its_own_has_its_line():
    assert ADVICE.keys() == VIEWS.keys()


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def config_of(name):
    return load_config(str(JOB), ["data.source=photos", *ADVICE[name]])  # refuses a setting that does not exist


@pytest.mark.parametrize("name", VIEWS)
def test_the_advice_gives_the_views_of_the_authors_code(name, clip):
    torch.manual_seed(0)
    side, padding, mirrored, operation, hole = VIEWS[name]
    config = config_of(name)
    settings = config.of(CoregSettings)
    assert SPEC.stored_spec(config, clip.image_spec).size_px == side
    assert SPEC.deployed_px(config, clip.image_spec) == side
    views = _views_of(settings, clip)
    image_3SS = torch.full((3, side, side), DARK, dtype=torch.uint8)
    image_3SS[:, :, side // 2 :] = LIGHT
    image_N3SS = image_3SS.repeat(N, 1, 1, 1)
    dark, light, black = (
        float(views.plain(torch.full((1, 3, 1, 1), value, dtype=torch.uint8))[0, 0]) for value in (DARK, LIGHT, 0)
    )

    row_NS = views.weak(image_N3SS)[:, 0, side // 2]
    swapped_N = row_NS[:, side // 4] == light
    assert bool((swapped_N | (row_NS[:, side // 4] == dark)).all())
    assert 0.4 < float(swapped_N.float().mean()) < 0.6 if mirrored else not bool(swapped_N.any())
    assert int((row_NS == black).sum(1).max()) == padding

    strong_NSS = views.strong(image_N3SS)[:, 0]
    known = torch.tensor([dark, light, black, 0.0])
    assert bool(torch.isin(strong_NSS, known).all()) is not operation
    hole_NSS = strong_NSS == 0.0  # the mean colour, which no pixel of these images has
    high_N, wide_N = hole_NSS.any(2).sum(1), hole_NSS.any(1).sum(1)
    largest = 16 if hole == 16 else side // 2 - 1
    if operation:
        whole_N = high_N < side  # an operation may make whole images grey
        high_N, wide_N = high_N[whole_N], wide_N[whole_N]
    assert int(high_N.max()) == int(wide_N.max()) == largest
    assert (int(high_N.min()) == 0) is (hole == "random")


@pytest.mark.parametrize("name", sorted(VIEWS.keys() - {"SVHN"}))
def test_the_smaller_sets_run_a_hundred_epochs_of_the_cosine_over_800(name):
    train = config_of(name).train
    assert (train.epochs, train.schedule_epochs) == (100, 800)
