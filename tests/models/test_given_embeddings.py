from pathlib import Path

import pytest
import torch

from raydapt.data.class_features import MEAN, read_class_features
from raydapt.data.embeddings import read
from raydapt.data.sources import resolve_source
from raydapt.errors import UserError
from raydapt.methods.ensemble.method import Ensemble
from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.models.given_embeddings import GivenEmbeddings
from tests.models.given import given

NAMES = ["cat", "dog", "cow"]


@pytest.mark.parametrize(
    ("model", "width", "mean"),
    [("openai-clip-RN50", 1024, 71.54), ("openai-clip-vit-B-32", 512, 81.29), ("openai-clip-vit-L-14", 768, 85.47),
     ("georsclip-vit-B-32", 512, 88.76)],
)  # fmt: skip
def test_zero_shot_of_published_features(data_folder: Path, model: str, width: int, mean: float) -> None:
    folder = data_folder / "clip_features"
    source = resolve_source(str(folder / f"{model}-whurs19.parquet"), rows_per_part=512)
    features = read_class_features(str(folder / f"{model}-whurs19.classes.parquet"))
    features.check_width(source.width, source.uri)
    assert (source.width, len(features.names), len(features.templates)) == (width, 19, 107)
    clip = GivenEmbeddings(features, logit_scale=100.0)
    tables = [table for _, table in read(source.parts)]
    feature_ND = torch.tensor([row for table in tables for row in table["feature"].to_pylist()])
    class_N = torch.tensor([features.names.index(label) for table in tables for label in table["label"].to_pylist()])

    def accuracy(class_CD: torch.Tensor) -> float:
        return 100 * float((ZeroShot(clip, class_CD).logits(feature_ND).argmax(1) == class_N).float().mean())

    assert accuracy(clip.class_embeddings(features.names, features.templates[:1])) == pytest.approx(mean, abs=0.006)
    ensemble = Ensemble(clip, features.names, features.templates)
    assert accuracy(ensemble.class_CD) == pytest.approx(mean, abs=0.006)
    if model == "openai-clip-vit-B-32":
        single = accuracy(clip.class_embeddings(features.names, ["a satellite photo of a {}."]))
        assert single == pytest.approx(76.6, abs=0.15)


def test_it_answers_what_methods_ask_of_a_clip() -> None:
    clip = given(NAMES, width=8)
    assert (clip.embed_dim, clip.logit_scale, clip.image_spec) == (8, 100.0, None)
    assert clip.device == torch.device("cpu")
    assert not list(clip.parameters())
    class_CD = clip.class_embeddings(NAMES, [MEAN])
    torch.testing.assert_close(class_CD.norm(dim=1), torch.ones(3))
    row_MD, class_M = clip.class_rows(NAMES)
    assert (row_MD.shape, class_M.tolist()) == ((6, 8), [0, 0, 1, 1, 2, 2])


def test_it_follows_to_another_device() -> None:
    clip = given(NAMES, width=8).to("meta")
    assert clip.device == torch.device("meta")
    assert clip.class_embeddings(NAMES, [MEAN]).device == torch.device("meta")


def test_towers_are_refused_in_one_sentence() -> None:
    clip = given(NAMES, width=8)
    for call in (clip.encode_text, clip.encode_image, clip.normalise_pixels):
        with pytest.raises(UserError, match=r"tower.*model\.clip\.$"):
            call(["a"])  # type: ignore[operator]
