"""What a restructuring of the package must not change: names on users' disks, and the form of a run's results.

All that is imported from raydapt is imported here, and all that is read of a plan is read in two functions.
``golden.json`` holds what `fingerprints_of` and `facts_of` gave when it was last written (see ``make_golden.py``).
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors import safe_open
from sklearn.datasets import load_digits

from raydapt.data import digits
from raydapt.methods.configuration import load_config
from raydapt.run.pipeline import run
from raydapt.run.plan import Plan, make_plan
from raydapt.settings.config import Config

GOLDEN = Path(__file__).with_name("golden.json")
JOBS = Path(__file__).parents[2] / "jobs"
MINI = ("data.source=digits", "model.clip=mini")
CAPTIONS = ("latteclip.use_image_caption=true", "latteclip.use_batch_caption=true")

JOB_FILES = ("air-samples", "air", "coreg-full", "coreg", "cpl", "demo", "ensemble", "fair", "fpl", "fusion", "grip",
             "large", "large-images", "latteclip", "transduct", "tune-study-fair", "tune-study", "tune", "wca",
             "zero_shot")  # fmt: skip
# coreg, coreg-topk and coreg-prob-ratio moved on 2026-11-25: Co-Reg's recipe says train.precision=auto. It said bf16,
# which is slow on a processor without bf16 instructions. Their artefacts stay valid, their runs are learned anew.
# coreg moved on 2026-11-26: it follows the public code where it differed, so the same settings have other results.
# coreg, coreg-topk and coreg-prob-ratio moved on 2026-11-27: small sets are dealt out several times an epoch.
# latteclip moved on 2026-11-26: its recipe reads both kinds of captions.
# Name of an entry: its job file (None: the defaults) and what is set beside it.
PLANS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    **{name: (name, ()) for name in JOB_FILES},
    "tune-study": ("tune-study", ("cpl.rounds=5",)),
    "large": ("large", ("data.class_features=null",)),
    "large-images": ("large-images", ("data.class_names=auto",)),
    "defaults": (None, ()),
    "cpl-ssl": ("cpl", ("data.paradigm=ssl",)),
    "cpl-trzsl": ("cpl", ("data.paradigm=trzsl",)),
    "cpl-visual": ("cpl", ("model.prompt=visual",)),
    "cpl-visual-trzsl": ("cpl", ("model.prompt=visual", "data.paradigm=trzsl")),
    "cpl-held-out": ("cpl", ("synthesis.held_out=5",)),
    "cpl-resources": ("cpl", ("train.workers=2", "train.checkpoint_every_s=5", "features.actors=3", "ray.cpus=2")),
    "cpl-seed-and-limit": ("cpl", ("seed=3", "data.limit=100", "features.rows_per_part=32")),
    "zero_shot-ssl": ("zero_shot", ("data.paradigm=ssl",)),
    "fpl-ssl": ("fpl", ("data.paradigm=ssl",)),
    "grip-trzsl-both": ("grip", ("data.paradigm=trzsl", "model.prompt=both")),
    "air-grip": ("air", ("air.base=grip",)),
    "air-fpl-visual": ("air", ("air.base=fpl", "model.prompt=visual")),
    "air-no-lora": ("air", ("lora.enabled=false",)),
    "air-no-synthetic": ("air", ("air.fusion_weight=0", "air.synthetic_weight=0")),
    "air-synthetic-only": ("air", ("air.synthetic_only=true",)),
    "air-held-out": ("air", ("synthesis.held_out=5",)),
    "demo-air": ("demo", ("method=air",)),
    "tune-air-held-out": ("tune", ("method=air", "synthesis.held_out=20")),
    "fair-cached": ("fair", ("fair.layer_norms=false",)),
    "fair-names": ("fair", ("fair.anchor_text=names",)),
    "fair-no-crops": ("fair", ("fair.crops=0", "fair.image_px=48")),
    "fair-layer-norms": ("fair", ("fair.layer_norms=true",)),
    "wca-layer-norms": ("wca", ("fair.layer_norms=false", "fair.top_k=10")),
    "coreg-topk": ("coreg", ("coreg.annotation=topk", "coreg.templates=set", "coreg.image_size_px=16")),
    "coreg-prob-ratio": ("coreg", ("coreg.annotation=prob_ratio", "coreg.gpu_per_student=true")),
    "latteclip-captions": ("latteclip", CAPTIONS),
    "latteclip-image-captions": ("latteclip", (*CAPTIONS[:1], "latteclip.tune=text_prompt")),
    "latteclip-server": ("latteclip", (*CAPTIONS, "caption.engine=openai", "caption.base_url=http://host:1/v1")),
    "latteclip-class-prompt": ("latteclip", (*CAPTIONS, "caption.image_prompt='Describe this {}.'")),
}

# Learning is cut to a few steps. With fp32 and one batch size the results do not depend on what a processor can do.
QUICK = ("data.limit=120", "ray.progress=false", "train.precision=fp32", "train.max_steps_per_round=3",
         "train.epochs=1", "train.warmup_epochs=0")  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "zero_shot": (),
    "ensemble": (),
    "wca": ("fair.crops=2",),
    "fpl": (),
    "grip": ("grip.rounds=2",),
    "cpl": ("cpl.rounds=2",),
    "air": ("lora.enabled=false", "cpl.rounds=2", "synthesis.samples_per_class=4", "synthesis.batch_size=2",
            "synthesis.steps=2", "synthesis.guidance=1"),
    "fair": ("fair.crops=2", "fair.layer_norms=false"),
    "coreg": ("train.epochs=3", "coreg.warmup_epochs=1", "coreg.start_contrast=1", "coreg.image_size_px=16",
              "coreg.epoch_images=0"),
    "latteclip": ("latteclip.tune=ln", "train.batch_size=32"),
    "transduct": (),
    "fusion": (),
}  # fmt: skip


def read_golden() -> dict[str, Any]:
    """What was recorded: ``plans`` and ``runs``, by the names of `PLANS` and `RUNS`."""
    return json.loads(GOLDEN.read_text())


def fingerprints_of(name: str) -> dict[str, Any]:
    """Run name, fingerprint of the run, and those of its artefacts by kind (null: it has none of that kind)."""
    job, overrides = PLANS[name]
    config = load_config(None if job is None else JOBS / f"{job}.yaml", [*MINI, *overrides])
    with _digits_without_png():
        plan = make_plan(config)
        return {"run_name": plan.run_name, "run": plan.fingerprint, "artefacts": recipes_of(plan)}


def recipes_of(plan: Plan) -> dict[str, str]:
    """Fingerprints of the artefacts of a plan, by kind; synthetic images of any use have one recipe."""
    return {spec.recipe.kind: spec.recipe.fingerprint for spec in plan.artefacts if spec.recipe is not None}


@contextmanager
def _digits_without_png() -> Iterator[None]:
    """The digits with their bare pixels for files, which no plan decodes.

    A fingerprint holds a digest of the image files. The built-in set writes its PNGs itself, and how they are
    compressed depends on Pillow's version and its zlib.
    """
    bunch = load_digits()
    images = tuple(np.rint(grey_HW).astype(np.uint8).tobytes() for grey_HW in bunch.images)
    splits = tuple("test" if index % 10 >= 7 else "train" for index in range(len(images)))
    fixed = digits.Digits(images, tuple(map(str, bunch.target.tolist())), splits)
    with mock.patch.object(digits, "load", return_value=fixed):
        yield


def tiny_config(method: str, folder: Path) -> Config:
    """The tiny run of a method; all runs of a folder share its store."""
    places = (f"runs={folder}/runs", f"store={folder}/store", f"name={method}")
    return load_config(JOBS / f"{method}.yaml", [*MINI, *places, *QUICK, *RUNS[method]])


def facts_of(method: str, folder: Path) -> dict[str, Any]:
    """Runs a method and tells the form of its results, and its accuracies in percent, rounded to 0.1."""
    made = Path(run(tiny_config(method, folder)).path)
    metrics = json.loads((made / "metrics.json").read_text())
    return {
        "top1": {name: round(metrics[name]["top1"], 1) for name in ("zero_shot", "adapted", "unguarded")},
        "files": sorted({_file_name(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}),
        "metrics": {key: sorted(types) for key, types in sorted(_types(metrics).items())},
        "checkpoint": tensors_of(made / "checkpoint" / "state.safetensors"),
    }


def _file_name(path: Path) -> str:
    """TensorBoard names its files after the time, the host and the process."""
    return re.sub(r"(events\.out\.tfevents\.).*", r"\1*", path.as_posix())


def _types(value: Any, key: str = "") -> dict[str, set[str]]:
    """The dotted keys of nested JSON with the types of their values; ``[]`` stands for all items of a list."""
    found: dict[str, set[str]] = {}
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else (("[]", item) for item in value)
        found[key] = {"object" if isinstance(value, Mapping) else "list"}
        for name, item in items:
            below = f"{key}{name}" if name == "[]" else f"{key}.{name}".removeprefix(".")
            for inner, types in _types(item, below).items():
                found.setdefault(inner, set()).update(types)
        return found
    return {key: {"null" if value is None else type(value).__name__}}


def tensors_of(file: Path) -> dict[str, str] | None:
    """Names of a checkpoint's tensors with type and shape; None where nothing was learned."""
    if not file.exists():
        return None
    with safe_open(file, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in sorted(tensors.keys())}
        return {name: f"{part.get_dtype()} {part.get_shape()}" for name, part in slices.items()}
