import dataclasses
import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from raydapt.errors import UserError
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.methods.deployed import deployed_clip
from raydapt.methods.table import spec_of
from raydapt.models.clip import load_clip
from raydapt.models.deployed import size_and_speed
from raydapt.settings.groups import DataSettings, ModelSettings
from raydapt.settings.tree import as_tree
from raydapt.store.run_record import Run
from raydapt.train.checkpoint import TrainState, to_bytes
from raydapt.verbs.export import export, to_onnx
from tests.methods.cases import CLASSES, build_method, config_of
from tests.methods.coreg_cases import coreg_images, coreg_method
from tests.models.tiny import pixels, tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def settings_of(**kwargs):
    data = DataSettings(class_names=list(CLASSES.names), templates=list(CLASSES.templates))
    coreg = CoregSettings(student="mini", image_size_px=16)
    return config_of(kwargs.pop("method"), {"coreg": coreg}, data=data, **kwargs)


@pytest.mark.parametrize(
    ("method", "prompt"),
    [
        ("zero_shot", "text"),
        ("transduct", "text"),
        ("ensemble", "text"),
        ("cpl", "text"),
        ("cpl", "visual"),
        ("cpl", "both"),
    ],
)
def test_a_clip_run_is_deployed_as_image_tower_and_class_embeddings(clip, method, prompt):
    model = ModelSettings(prompt=prompt, text_prompt_tokens=4, visual_prompt_tokens=4)
    built = build_method(settings_of(method=method, model=model), clip, CLASSES).eval()
    pixel = pixels(5)
    with torch.no_grad():
        read = pixel if built.input_kind == "pixels" else clip.encode_image(pixel)
        torch.testing.assert_close(
            spec_of(method).deployable(built, clip)(pixel), built.logits(read), rtol=1e-3, atol=1e-3
        )


def test_both_students_are_deployed_without_projectors():
    method = coreg_method(coreg_images()).eval()
    model = spec_of("coreg").deployable(method, None)
    pixel = coreg_images().pixels.pixel_R3SS
    torch.testing.assert_close(model(pixel), method.logits(pixel))
    assert not [name for name in model.state_dict() if "projector" in name]
    figures = size_and_speed(model, 12, torch.device("cpu"))
    assert figures["parameters"] == sum(p.numel() for p in model.parameters())
    assert figures["images_per_s"] > 0


def test_what_is_no_linear_classifier_is_refused_in_one_sentence(clip):
    class Crooked(torch.nn.Module):
        input_kind = "features"

        def logits(self, feature_BD):
            return F.relu(feature_BD)

    with pytest.raises(UserError, match="Crooked is more than"):
        deployed_clip(Crooked(), clip)


@pytest.mark.slow
def test_a_visual_prompt_survives_onnx(clip):
    model = ModelSettings(prompt="visual", visual_prompt_tokens=4)
    method = build_method(settings_of(method="cpl", model=model), clip, CLASSES).eval()
    data, difference = to_onnx(spec_of("cpl").deployable(method, clip), clip.image_spec.size_px)
    assert len(data) > 1000
    assert difference < 1e-3


@pytest.mark.slow
def test_an_exported_run_answers_without_raydapt(tmp_path):
    config = settings_of(method="coreg")
    method = build_method(config, load_clip("mini"), CLASSES).eval()
    run = Run(str(tmp_path), "adapted")
    run.make()
    state = {name: tensor.detach() for name, tensor in method.state_dict().items()}
    run.write_bytes("checkpoint/state.safetensors", to_bytes(TrainState(method=state, finished=True)))
    run.write_text("config.yaml", json.dumps(as_tree(dataclasses.replace(config, runs=str(tmp_path)))))
    accuracy = {"top1": 50.0}
    run.write_json(
        "metrics.json", {"zero_shot": accuracy, "adapted": {"top1": 60.0}, "evaluation": {"labelled_images": 10}}
    )
    folder = export(str(tmp_path / "adapted"), str(tmp_path / "out"))
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
    pixel = np.random.default_rng(0).integers(0, 256, (7, 3, 16, 16)).astype(np.uint8)
    answer = session.run(None, {"pixels": pixel})[0]
    with torch.no_grad():
        np.testing.assert_allclose(answer, method.logits(torch.from_numpy(pixel)).numpy(), rtol=1e-3, atol=1e-3)
    assert json.loads((tmp_path / "out/classes.json").read_text())["classes"] == list(CLASSES.names)
    card = (tmp_path / "out/README.md").read_text()
    assert "60.00 % (zero-shot CLIP: 50.00 %)" in card
    assert sum(t.numel() for t in load_file(f"{folder}/model.safetensors").values()) > 300_000
