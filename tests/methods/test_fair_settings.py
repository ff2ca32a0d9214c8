"""What FAIR's settings become once source and model are known."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.fair.settings import FairSettings
from raydapt.run.members import member_configs
from raydapt.run.plan import make_plan


@pytest.mark.parametrize(
    ("crops", "has_images", "size_px", "cut"),
    [
        ("auto", True, 32, 8),
        ("auto", True, 224, 8),
        ("auto", False, 32, 0),
        ("small_towers", True, 32, 8),
        ("small_towers", True, 223, 8),
        ("small_towers", True, 224, 0),
        ("small_towers", False, 32, 0),
        (5, True, 336, 5),
    ],
)
def test_how_many_crops_are_cut(crops: str | int, has_images: bool, size_px: int, cut: int) -> None:
    settings = FairSettings(crops=crops, layer_norms=False).decided(has_images=has_images, size_px=size_px)
    assert (settings.crops, settings.n_crops) == (cut, cut)
    assert settings.score_at_test is (cut > 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("oak", "birch"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 40), (i * 100, 50, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def planned(source: object, *overrides: str) -> FairSettings:
    job = ["method=fair", f"data.source={source}", "fair.anchor_text=auto", *overrides]
    return make_plan(load_config(None, job)).config.of(FairSettings)


def test_anchors_are_described_where_descriptions_are(photos: Path, tmp_path: Path) -> None:
    known = planned("digits")
    assert known.anchor_text == "descriptions"
    assert list(known.descriptions) == [str(digit) for digit in range(10)]
    assert planned("digits", "data.class_names=[naught, one, two, 3, 4, 5, 6, 7, 8, 9]").anchor_text == "names"
    assert planned(photos).anchor_text == "names"
    file = tmp_path / "trees.yaml"
    file.write_text(yaml.safe_dump({"oak": ["an oak leaf"], "birch": ["a birch leaf"]}))
    assert planned(photos, f"fair.descriptions={file}").descriptions == {
        "birch": ["a birch leaf"],
        "oak": ["an oak leaf"],
    }
    file.write_text(yaml.safe_dump({"oak": ["an oak leaf"]}))
    with pytest.raises(UserError, match="birch"):  # who gives some means them
        planned(photos, f"fair.descriptions={file}")


def test_fusion_takes_crops_of_small_towers_and_descriptions_where_they_are(photos: Path) -> None:
    for source, text in (("digits", "descriptions"), (photos, "names")):
        fair = next(c for c in member_configs(load_config(None, ["method=fusion", f"data.source={source}"]))
                    if c.method == "fair")  # fmt: skip
        resolved = make_plan(fair).config.of(FairSettings)
        assert (resolved.crops, resolved.layer_norms, resolved.anchor_text) == (8, False, text)
