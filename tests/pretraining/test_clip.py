"""The embedded miniature CLIP, loaded the way any open_clip user loads a folder."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parents[2] / "raydapt" / "models" / "mini" / "clip"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, Any]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{FOLDER}")


@torch.no_grad()
def zero_shot(loaded: Any, images: Iterable[Image.Image], labels: Sequence[int], texts: list[str]) -> float:
    model, preprocess, tokenize = loaded
    classes_CD = model.encode_text(tokenize(texts), normalize=True)
    pixels_NCHW = torch.stack([preprocess(image) for image in images])
    logits_NC = torch.cat([model.encode_image(part, normalize=True) @ classes_CD.T for part in pixels_NCHW.split(256)])
    return float((logits_NC.argmax(1) == torch.tensor(labels)).float().mean())


def parquet_rows(file: Path, split: str) -> tuple[list[Image.Image], list[str]]:
    table = pq.read_table(file, filters=[("split", "=", split)]).to_pydict()
    return [Image.open(io.BytesIO(one)).convert("RGB") for one in table["image"]], table["label"]


def test_the_folder_is_small_and_has_a_card() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 15_000_000
    assert "Terms" in (FOLDER / "README.md").read_text()


def test_end_of_text_has_the_largest_id(loaded: Any) -> None:
    model, _, tokenize = loaded
    tokens_NL = tokenize(["a photo of a dog.", "Ünïcödé 漢字 👀"])
    last = model.token_embedding.num_embeddings - 1
    assert tokens_NL.shape == (2, 77)
    assert tokens_NL.max(1).values.tolist() == [last, last]
    assert tokenize.tokenizer.pad_token_id == 0
    assert torch.equal(tokenize("A PHOTO of a dog."), tokens_NL[:1])


def test_the_image_tower_is_a_plain_vision_transformer(loaded: Any) -> None:
    tower = loaded[0].visual
    assert isinstance(tower, open_clip.transformer.VisionTransformer)
    assert tower.pool_type == "tok"
    assert tower.class_embedding.shape == tower.positional_embedding.shape[1:]


@pytest.mark.slow
@pytest.mark.parametrize("names", [WORDS, [str(digit) for digit in range(10)]], ids=["words", "figures"])
def test_handwritten_digits(loaded: Any, names: list[str]) -> None:
    data = load_digits()
    images = [Image.fromarray((image * 255 / 16).round().astype(np.uint8)).convert("RGB") for image in data.images]
    texts = [f"a photo of the digit {name}." for name in names]
    assert zero_shot(loaded, images, data.target.tolist(), texts) >= 0.60


@pytest.mark.slow
def test_satellite_images(loaded: Any, data_folder: Path) -> None:
    images, labels = parquet_rows(data_folder / "eurosat.parquet", "test")
    names = sorted(set(labels))
    texts = [f"a centered satellite photo of {name.lower()}." for name in names]
    assert zero_shot(loaded, images, [names.index(label) for label in labels], texts) >= 0.28


@pytest.mark.slow
def test_cartoons(loaded: Any, data_folder: Path) -> None:
    images, labels = parquet_rows(data_folder / "pacs_cartoon.parquet", "test")
    names = sorted(set(labels))
    texts = [f"a cartoon of a {name}." for name in names]
    assert zero_shot(loaded, images, [names.index(label) for label in labels], texts) >= 0.25
