"""What is synthesised is decided before it is made, and the LoRA is taught by the images that CLIP is surest of."""

import dataclasses
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from raydapt.data.sources import read_parts
from raydapt.errors import UserError
from raydapt.models.diffusion_lora import adapter_weights, add_adapters, lora_bytes
from raydapt.run.plan import Plan, make_plan
from raydapt.settings.config import load_config
from raydapt.settings.groups import StageSettings
from raydapt.stages.context import ActorPlan
from raydapt.stages.features import Encoder, load_features, load_labels
from raydapt.stages.reading import read_and_decode
from raydapt.stages.run import MODEL_S, PART, PART_ROWS, whole_parts
from raydapt.stages.synthetic import choose_images, make_lora, pixels_of_rows, plan_synthesis
from raydapt.store.artefact import Artefact
from tests.models.tiny_diffusion import save_tiny_pipeline, tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return save_tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="module")
def plan(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    store = tmp_path_factory.mktemp("store")
    words = ["data.source=digits", "data.limit=120", "features.rows_per_part=60", f"store={store}",
             f"synthesis.pipeline={folder}", "lora.images_per_class=3", "lora.steps=3", "lora.rank=2"]  # fmt: skip
    return make_plan(load_config(None, words))


@pytest.fixture(scope="module")
def features(plan: Plan) -> Artefact:
    """The features of the plan, made in this process."""
    encoder = Encoder("mini", plan.clip_identity, StageSettings().batch_size, ActorPlan(actors=1, cpus=1, gpus=0))
    artefact = plan.store.artefact_of(plan.features)
    decode = {"data": plan.config.data, "spec": plan.image_spec, "packed": True}
    for part in plan.source.parts:
        (packed,) = read_and_decode(pa.table({"parts": [pickle.dumps((part,))]}), **decode)
        ((_, table),) = whole_parts([encoder(packed)])
        artefact.commit_part(part.index, table.drop_columns([PART, PART_ROWS, MODEL_S]))
    artefact.finish(plan.features, {part.index for part in plan.source.parts}, {}, {})
    return artefact


def resolved(plan: Plan, *overrides: str) -> object:
    config = load_config(None, [f"synthesis.pipeline={plan.config.synthesis.pipeline}", *overrides])
    config = dataclasses.replace(config, data=plan.config.data)
    return plan_synthesis(config, plan.classes, plan.features)


def test_settings_resolve_and_name_the_images(plan: Plan) -> None:
    wanted = plan_synthesis(plan.config, plan.classes, plan.features)
    assert wanted.job.template == plan.classes.templates[0]
    assert wanted.job.sampling.size_px == 16
    assert wanted.lora is not None
    assert wanted.job.recipe.inputs == (wanted.lora.fingerprint,)
    assert wanted.lora.inputs == (plan.features.fingerprint,)
    more = dataclasses.replace(
        plan.config, synthesis=dataclasses.replace(plan.config.synthesis, samples_per_class=300, actors=1)
    )
    assert plan_synthesis(more, plan.classes, plan.features).job.recipe.fingerprint == wanted.job.recipe.fingerprint
    without = plan_synthesis(
        dataclasses.replace(plan.config, lora=dataclasses.replace(plan.config.lora, enabled=False)),
        plan.classes,
        plan.features,
    )
    assert without.lora is None
    assert without.job.recipe.fingerprint != wanted.job.recipe.fingerprint


def test_mistakes_are_one_sentence(plan: Plan, features: Artefact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"synthesis\.template='a photo'"):
        resolved(plan, "synthesis.template=a photo")
    with pytest.raises(UserError, match=r"synthesis\.pipeline='\./nowhere'"):
        resolved(plan, "synthesis.pipeline=./nowhere")
    with pytest.raises(UserError, match=r"synthesis\.lora="):
        resolved(plan, f"synthesis.lora={tmp_path}")
    for mistake in ("synthesis.samples_per_class=-1", "lora.images_per_class=0", "synthesis.steps=0"):
        with pytest.raises(UserError, match=mistake.split("=")[0].replace(".", r"\.") + "=.*greater than"):
            load_config(None, [mistake])
    off = dataclasses.replace(
        plan, config=dataclasses.replace(plan.config, lora=load_config(None, ["lora.enabled=false"]).lora)
    )
    with pytest.raises(UserError, match=r"lora\.enabled=false"):
        make_lora(off, features)


def test_given_weights_are_used_as_they_are(plan: Plan, tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    add_adapters(pipeline, rank=4, text_encoder=False)
    data = lora_bytes(adapter_weights(pipeline, text_encoder=False))
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(data)
    config = load_config(None, [f"synthesis.lora={tmp_path}", f"synthesis.pipeline={plan.config.synthesis.pipeline}"])
    config = dataclasses.replace(config, data=plan.config.data)
    wanted = plan_synthesis(config, plan.classes, plan.features)
    assert (wanted.lora, wanted.job.lora) == (None, data)


def test_the_surest_images_of_the_training_split_teach(plan: Plan, features: Artefact) -> None:
    chosen = choose_images(plan, features)
    table = load_features(features)
    split_of = dict(zip(table.row_N.tolist(), table.split_N, strict=True))
    assert {split_of[row] for row in chosen.row_M.tolist()} == {"train"}
    assert max(torch.bincount(chosen.class_M).tolist()) <= 3
    truth = plan.classes.indices_of(load_labels(features))
    right = [
        int(truth[row]) == class_ for row, class_ in zip(chosen.row_M.tolist(), chosen.class_M.tolist(), strict=True)
    ]
    assert sum(right) / len(right) > 0.8


def test_pixels_are_those_of_the_rows(plan: Plan) -> None:
    pixels = pixels_of_rows(plan, [3, 100], 16)
    assert set(pixels) == {3, 100}
    assert pixels[3].shape == (3, 16, 16)
    alone = pixels_of_rows(plan, [100], 16)
    assert (alone[100] == pixels[100]).all()
    assert not (pixels[3] == pixels[100]).all()
    assert sum(table.num_rows for _, table in read_parts(plan.source.parts, plan.config.data)) == 120


def test_the_lora_is_made_once(plan: Plan, features: Artefact) -> None:
    first = make_lora(plan, features)
    assert not first.reused
    assert first.artefact.manifest.stats["steps"] == 3
    assert make_lora(plan, features).reused
