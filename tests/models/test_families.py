"""What can be learned of each kind of tower that open_clip has, and the table of it in docs/towers.md.

`python -m tests.models.test_families` writes the table anew.
"""

import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from raydapt.errors import UserError
from raydapt.models.clip import Clip
from raydapt.models.deployed import DeployedClip
from raydapt.models.prompts import TextPrompt, VisualPrompt
from raydapt.models.tuned_clip import TunedClip
from raydapt.models.tuned_norms import TunedNorms
from raydapt.verbs.export import to_onnx
from tests.models.families import FAMILIES, family_clip

PAGE = Path(__file__).parents[2] / "docs" / "towers.md"
NAMES, TEXTS = ["cat", "a river"], ["a photo of a cat", "x"]
COLUMNS = ("features", "text prompt", "visual prompt", "LayerNorms (fair)", "LayerNorms", "LoRA", "full")


def _pixels(clip: Clip) -> torch.Tensor:
    side_px = clip.image_spec.size_px
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 3, side_px, side_px), dtype=torch.uint8, generator=generator)


def _features(clip: Clip) -> None:
    """Features are those of open_clip's own calls."""
    with torch.no_grad():
        image = F.normalize(clip.model.encode_image(clip.normalise_pixels(_pixels(clip))), dim=-1)
        torch.testing.assert_close(clip.encode_image(_pixels(clip)), image, atol=1e-5, rtol=0)
        token_TL = clip.text_tower.tokenize(TEXTS)
        text = F.normalize(clip.model.encode_text(token_TL), dim=-1)
    torch.testing.assert_close(clip.encode_text(TEXTS), text, atol=1e-5, rtol=0)
    assert image.shape == text.shape


def _text_prompt(clip: Clip) -> None:
    """Words as a prompt give what the words give as text."""
    tower = clip.text_tower
    token_L = tower.tokenize(["x"])[0]
    start = tower.start_length()
    prompt = TextPrompt(clip, NAMES, n_tokens=1, classes_per_chunk=9, seed=0)
    embedding = tower._words if hasattr(tower, "_words") else tower._tower.token_embedding
    letter = not hasattr(tower, "_words")  # the tokenizer of words puts the space before the next one
    expected_CD = clip.encode_text([f"x {name}" if letter else f"x{name}" for name in NAMES])
    with torch.no_grad():
        torch.testing.assert_close(prompt(embedding(token_L[start : start + 1])), expected_CD, atol=1e-4, rtol=0)
    prompt().sum().backward()
    assert bool(prompt.context_LD.grad.any())


def _visual_prompt(clip: Clip) -> None:
    plain, prompted = VisualPrompt(clip, n_tokens=0, seed=0), VisualPrompt(clip, n_tokens=2, seed=0)
    with torch.no_grad():
        moved = (plain(_pixels(clip)) - prompted(_pixels(clip))).abs().max()
    assert float(moved) > 1e-5


def _fair_norms(clip: Clip) -> None:
    tuned = TunedNorms(clip, learn=True)
    with torch.no_grad():
        torch.testing.assert_close(tuned.encode(_pixels(clip)), clip.encode_image(_pixels(clip)), atol=1e-5, rtol=0)
        before = tuned.encode(_pixels(clip))
        for norm in tuned.norms:
            norm.add_(torch.rand(norm.shape, generator=torch.Generator().manual_seed(1)))
        assert float((tuned.encode(_pixels(clip)) - before).abs().max()) > 1e-5


def _tuned(clip: Clip, tune) -> None:
    """At the start nothing has changed; a step changes the features of both towers, in `plain()` as well."""
    tuned = TunedClip(clip, tune=tune, text=True, rank=2, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for encode in (lambda c: c.encode_image(_pixels(c)), lambda c: c.encode_text(TEXTS)):
            torch.testing.assert_close(encode(tuned.clip), encode(clip), atol=1e-5, rtol=0)
        for parameter in tuned.learned:
            parameter.add_(0.3 * torch.rand(parameter.shape, generator=generator))
        plain = tuned.plain()
        for encode in (lambda c: c.encode_image(_pixels(c)), lambda c: c.encode_text(TEXTS)):
            assert float((encode(tuned.clip) - encode(clip)).abs().max()) > 1e-5
            torch.testing.assert_close(encode(plain), encode(tuned.clip), atol=1e-4, rtol=0)


def _ln(clip: Clip) -> None:
    _tuned(clip, "ln")


def _lora(clip: Clip) -> None:
    _tuned(clip, "lora")


def _full(clip: Clip) -> None:
    _tuned(clip, "full")


CHECKS = (_features, _text_prompt, _visual_prompt, _fair_norms, _ln, _lora, _full)


def row_of(family: str, folder: Path) -> str:
    """The line of the table: what works, and a dash for what is refused in a sentence."""
    architecture = FAMILIES[family]
    clip = family_clip(architecture, folder)
    cells = []
    for check in CHECKS:
        refusal = ""
        try:
            check(clip)
        except UserError as error:
            refusal = str(error)
        assert not refusal or re.search(r"choose|set it to", refusal)
        cells.append("–" if refusal else "yes")
    return f"| {family} | `{architecture}` | {' | '.join(cells)} |"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_towers_says_what_each_can_learn(family, tmp_path):
    assert row_of(family, tmp_path) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tower_is_exported(family, tmp_path):
    pytest.importorskip("onnxscript")
    clip = family_clip(FAMILIES[family], tmp_path)
    _, difference = to_onnx(DeployedClip(clip, clip.encode_text(TEXTS)).eval(), clip.image_spec.size_px)
    assert difference < 1e-3


def write_table() -> None:
    """Writes the rows into the page, between its two marks."""
    lines = [f"| towers | such as | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        lines += [row_of(family, Path(folder)) for family in FAMILIES]
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index("| towers |"), page.index("\n\n", page.index("| towers |"))
    PAGE.write_text(page[:start] + "\n".join(lines) + page[end:], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(write_table())
