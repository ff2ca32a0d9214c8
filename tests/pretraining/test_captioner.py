"""The embedded miniature captioner, loaded the way any transformers user loads a LLaVA."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pretraining.captioner_evaluation import Captioner, canvas, share_right
from pretraining.captioner_model import MINI
from pretraining.captioner_sentences import GROUP_QUESTION, SINGLE_QUESTION
from pretraining.clip_vocabulary import DIGIT_NAMES


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.load("mini")


def test_the_folder_is_small_and_has_a_card() -> None:
    assert sum(file.stat().st_size for file in MINI.iterdir()) <= 15_000_000
    assert "Terms" in (MINI / "README.md").read_text()
    assert Path(MINI / "chat_template.jinja").is_file()


def test_it_reads_handwritten_digits(captioner: Captioner) -> None:
    data = load_digits()
    images = [Image.fromarray((one * 255 / 16).round().astype(np.uint8)).convert("RGB") for one in data.images[:60]]
    names = [DIGIT_NAMES[digit] for digit in data.target[:60].tolist()]
    captions = captioner.describe(images, SINGLE_QUESTION.format("digit", "photo"))
    assert share_right(captions, names) >= 0.5
    assert len(set(captions)) > 10
    assert all(0 < len(caption.split()) < 20 for caption in captions)


def test_it_reads_groups(captioner: Captioner) -> None:
    data = load_digits()
    groups = [data.images[data.target == digit][:4] for digit in range(10)]
    canvases = [
        canvas([Image.fromarray((one * 255 / 16).round().astype(np.uint8)).convert("RGB") for one in group])
        for group in groups
    ]
    captions = captioner.describe(canvases, GROUP_QUESTION.format("digits", "photos"))
    assert share_right(captions, DIGIT_NAMES) >= 0.3
