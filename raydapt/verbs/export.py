"""``raydapt export``: a run as files that need no raydapt: safetensors, ONNX, class names and a card."""

import io
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from raydapt.data.classes import ClassSpace
from raydapt.errors import UserError
from raydapt.methods.spec import BuildContext
from raydapt.methods.table import spec_of
from raydapt.models.clip import load_clip
from raydapt.models.deployed import size_and_speed
from raydapt.run.finished import load_learned, open_run
from raydapt.settings.config import Config
from raydapt.store.folder import Folder
from raydapt.store.run_record import Run

_LOG = logging.getLogger(__name__)
_TOLERANCE = 1e-3


def export(run_folder: str, output: str) -> str:
    """Writes the adapted model of a run into a folder and returns its path.

    ``model.onnx`` and ``model.safetensors`` take uint8 pixels [B, 3, S, S] and give logits [B, C]; ``classes.json``
    holds the class names and the image size, ``README.md`` is the model card with the measured figures.

    Args:
        run_folder: A finished run.
        output: Folder to write to, local or any fsspec URL.

    Raises:
        UserError: For a folder that is no run, a method that cannot be exported, or missing packages.
    """
    run, config = open_run(run_folder)
    if config.data.class_features is not None:
        raise UserError(
            f"Run {run_folder!r} was learned on features without their model, so there is no image tower to export: "
            "run it with model.clip=… in place of data.class_features."
        )
    metrics = run.read_json("metrics.json")
    if found := _guarded(metrics):
        _LOG.warning(found.strip())
    clip, spec = load_clip(config.model.clip), spec_of(config.method)
    method = load_learned(spec.build(BuildContext(config=config, clip=clip, classes=_classes(config))), run, config)
    side_px = spec.deployed_px(config, clip.image_spec)
    model = spec.deployable(method, clip)
    onnx_bytes, difference = to_onnx(model, side_px)
    speed = size_and_speed(model, side_px, torch.device("cpu"))
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    names = list(config.data.class_names)
    image_spec = clip.image_spec
    facts = {
        "classes": names,
        "image_size_px": side_px,
        "resize_mode": image_spec.resize_mode,
        "interpolation": image_spec.interpolation,
        "input": "uint8 pixels [batch, 3, size, size], RGB",
        "output": "logits [batch, classes]",
    }
    folder = Folder(output, setting="--output")
    folder.write("model.onnx", onnx_bytes)
    folder.write("model.safetensors", save(tensors, metadata={"format": "pt"}))
    folder.write("classes.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    card = _card(run, config, metrics, facts, speed, size=len(onnx_bytes), difference=difference)
    folder.write("README.md", card.encode())
    return folder.path


def to_onnx(model: nn.Module, side_px: int) -> tuple[bytes, float]:
    """The model as ONNX with any batch size, run once in onnxruntime against PyTorch.

    Returns:
        The file's bytes, and the largest difference of a logit.

    Raises:
        UserError: If the packages of the extra ``export`` are missing.
        RuntimeError: If the two disagree.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise UserError(f"Export needs onnx and onnxruntime ({error}): install raydapt[export].") from error
    pixel = torch.randint(0, 256, (3, 3, side_px, side_px), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own parts
        path = Path(folder) / "model.onnx"
        program = torch.onnx.export(
            model,
            (pixel,),
            input_names=["pixels"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        program.save(path)
        proto = onnx.load(path)
    onnx.checker.check_model(proto)
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    largest = 0.0
    for n in (3, 1):
        answer = torch.from_numpy(session.run(None, {"pixels": pixel[:n].numpy()})[0])
        with torch.no_grad():
            expected: Tensor = model(pixel[:n])
        largest = max(largest, float((answer - expected).abs().max()))
    if largest > _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise RuntimeError(f"the ONNX model differs from PyTorch's by {largest:g} in a logit")
    return data, largest


def _classes(config: Config) -> ClassSpace:
    names = tuple(config.data.class_names)
    return ClassSpace(names=names, labels=names, templates=tuple(config.data.templates))


def _guarded(metrics: dict[str, Any]) -> str:
    """A sentence where the run answers otherwise than the exported model; empty where it does not."""
    answer = metrics.get("answer", "adapted")
    if answer == "adapted":
        return ""
    reason = f" ({metrics['guard']['reason'].rstrip('.')})" if metrics.get("guard") else ""
    return f" The run itself answers by {answer}{reason}: this file is the adapted model alone."


def _card(
    run: Run,
    config: Config,
    metrics: dict[str, Any],
    facts: dict[str, Any],
    speed: dict[str, Any],
    *,
    size: int,
    difference: float,
) -> str:
    """The model card, with measured figures only."""
    text = io.StringIO()
    # What is exported is the adapted model, whatever the run's guard kept.
    before, after = metrics["zero_shot"]["top1"], (metrics.get("unguarded") or metrics["adapted"])["top1"]
    judged = "The images had no labels, so there is no accuracy."
    if after is not None:
        images = metrics["evaluation"]["labelled_images"]
        judged = f"Top-1 accuracy on {images:,} test images: {after:.2f} % (zero-shot CLIP: {before:.2f} %)."
    judged += _guarded(metrics)
    what = spec_of(config.method).deployed_words
    text.write(
        f"""---
library_name: onnx
pipeline_tag: image-classification
---
# {run.name}

An image classifier for {len(facts["classes"])} classes, adapted without labels by raydapt (method `{config.method}`,
model `{config.model.clip}`, images `{config.data.source}`, seed {config.seed}): {what}. {judged}

| parameters | ONNX file | images/s, batch 64, on the machine that wrote this |
|---|---|---|
| {speed["parameters"]:,} | {size / 1e6:.2f} MB | {speed["images_per_s"]:,.0f} |

The ONNX model was run against PyTorch: the largest difference of a logit was {difference:.1e}.

```python
import json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
facts = json.load(open("classes.json"))  # also how images are brought to their size
pixels = np.zeros((1, 3, facts["image_size_px"], facts["image_size_px"]), np.uint8)
print(facts["classes"][session.run(None, {{"pixels": pixels}})[0].argmax()])
```

`model.safetensors` holds the same weights. Labels were used to measure, never to learn. The classes are told apart as
well as CLIP's guesses allow: measure on your own images before relying on it.
"""
    )
    return text.getvalue()
