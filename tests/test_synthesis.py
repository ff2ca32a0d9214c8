"""What is synthesised is decided before it is made, and the LoRA is taught by the images that CLIP is surest of."""

import dataclasses
import logging
import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from raydapt.artefacts.features import load_features, load_labels, rows_of_splits
from raydapt.artefacts.synthesis import SynthesisPlan, plan_synthesis
from raydapt.errors import UserError
from raydapt.methods.air.settings import AirSettings
from raydapt.methods.air.specs import synthetic_specs
from raydapt.methods.configuration import load_config
from raydapt.methods.open_set import kept_rows
from raydapt.models.clip import load_clip
from raydapt.models.diffusion_lora import adapter_weights, add_adapters, lora_bytes
from raydapt.run.plan import Plan, make_plan
from raydapt.settings.config import Config
from raydapt.settings.groups import DenoiserPrecision, StageSettings
from raydapt.stages.captioning import known_rows
from raydapt.stages.commit import TOLD
from raydapt.stages.context import ActorPlan
from raydapt.stages.features import Encoder
from raydapt.stages.reading import read_and_decode
from raydapt.stages.run import whole_parts
from raydapt.stages.synthetic import choose_images, make_lora
from raydapt.store.artefact import Artefact, StageResult
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
    encoder = Encoder("mini", plan.clip_identity, StageSettings(), ActorPlan(actors=1, cpus=1, gpus=0))
    artefact = plan.store.artefact_of(plan.features)
    decode = {"data": plan.config.data, "spec": plan.image_spec}
    for part in plan.source.parts:
        (packed,) = read_and_decode(pa.table({"parts": [pickle.dumps((part,))]}), **decode)
        ((_, table),) = whole_parts([encoder(packed)])
        artefact.commit_part(part.index, table.drop_columns(list(TOLD)))
    artefact.finish(plan.features, {part.index for part in plan.source.parts}, {}, {})
    return artefact


def test_how_images_are_computed_names_no_other_run(folder: str, tmp_path: Path) -> None:
    words = ["method=air", "data.source=digits", "data.limit=120", f"store={tmp_path}", f"synthesis.pipeline={folder}"]
    plain, elsewhere, *others = (
        make_plan(load_config(None, [*words, *more])).fingerprint
        for more in ([], ["synthesis.compile=true", "synthesis.actors=3"], ["synthesis.steps=3"],
                     ["synthesis.precision=fp8"], ["synthesis.precision=fp8-weights"])
    )  # fmt: skip
    assert plain == elsewhere
    assert len({plain, *others}) == 4


def synthesis_of(plan: Plan, config: Config) -> SynthesisPlan:
    return plan_synthesis(config.synthesis, config.lora, config.data, plan.classes, plan.features)


def resolved(plan: Plan, *overrides: str) -> SynthesisPlan:
    config = load_config(None, [f"synthesis.pipeline={plan.config.synthesis.pipeline}", *overrides])
    return synthesis_of(plan, dataclasses.replace(config, data=plan.config.data))


def test_settings_resolve_and_name_the_images(plan: Plan) -> None:
    wanted = synthesis_of(plan, plan.config)
    assert wanted.job.template == plan.classes.templates[0]
    assert wanted.job.sampling.size_px == 16
    assert wanted.lora is not None
    assert wanted.job.recipe.inputs == (wanted.lora.fingerprint,)
    assert wanted.lora.inputs == (plan.features.fingerprint,)
    more = dataclasses.replace(
        plan.config, synthesis=dataclasses.replace(plan.config.synthesis, samples_per_class=300, actors=1)
    )
    assert synthesis_of(plan, more).job.recipe.fingerprint == wanted.job.recipe.fingerprint
    without = synthesis_of(
        plan, dataclasses.replace(plan.config, lora=dataclasses.replace(plan.config.lora, enabled=False))
    )
    assert without.lora is None
    assert without.job.recipe.fingerprint != wanted.job.recipe.fingerprint


def test_mistakes_are_one_sentence(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"synthesis\.template='a photo'"):
        resolved(plan, "synthesis.template=a photo")
    with pytest.raises(UserError, match=r"synthesis\.pipeline='\./nowhere'"):
        resolved(plan, "synthesis.pipeline=./nowhere")
    with pytest.raises(UserError, match=r"synthesis\.lora="):
        resolved(plan, f"synthesis.lora={tmp_path}")
    for mistake in ("synthesis.samples_per_class=-1", "lora.images_per_class=0", "synthesis.steps=0"):
        with pytest.raises(UserError, match=mistake.split("=")[0].replace(".", r"\.") + "=.*greater than"):
            load_config(None, [mistake])


def test_given_weights_are_used_as_they_are(plan: Plan, tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    add_adapters(pipeline, rank=4, text_encoder=False)
    data = lora_bytes(adapter_weights(pipeline, text_encoder=False))
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(data)
    config = load_config(None, [f"synthesis.lora={tmp_path}", f"synthesis.pipeline={plan.config.synthesis.pipeline}"])
    config = dataclasses.replace(config, data=plan.config.data)
    wanted = synthesis_of(plan, config)
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


def test_images_of_none_of_the_names_neither_teach_nor_are_described_in_groups(plan: Plan, features: Artefact) -> None:
    data = dataclasses.replace(plan.config.data, reject=0.4)
    rejecting = dataclasses.replace(plan, config=dataclasses.replace(plan.config, data=data))
    table = load_features(features, plan.source)
    row_N, _, _ = rows_of_splits(data, table)
    clip = load_clip(plan.config.model.clip)
    text_CD = clip.class_embeddings(plan.classes.names, plan.classes.templates[:1]).cpu()
    kept = set(kept_rows(data, table.feature_ND, row_N, text_CD).tolist())
    assert len(kept) < 0.7 * len(row_N)
    position = {row: at for at, row in enumerate(table.row_N.tolist())}
    assert {position[row] for row in choose_images(rejecting, features).row_M.tolist()} <= kept
    assert not {position[row] for row in choose_images(plan, features).row_M.tolist()} <= kept
    assert synthesis_of(rejecting, rejecting.config).lora != synthesis_of(plan, plan.config).lora
    for groups, expected in ((True, kept), (False, set(row_N.tolist()))):
        known = known_rows(rejecting, features, all_splits=False, groups=groups)
        assert set(known.wanted_N.nonzero()[0].tolist()) == expected


def test_in_trzsl_images_of_unseen_classes_teach_airs_lora(plan: Plan, features: Artefact) -> None:
    everything, taught = choose_images(plan, features), choose_images(plan, features, taught=(2, 5))
    assert set(everything.class_M.tolist()) > set(taught.class_M.tolist()) == {2, 5}
    wanted = torch.isin(everything.class_M, torch.tensor([2, 5]))
    assert taught.row_M.tolist() == everything.row_M[wanted].tolist()
    data = dataclasses.replace(plan.config.data, paradigm="trzsl")
    recipes = {}
    for classes in ("unseen", "all"):
        own = {"air": AirSettings(trzsl_classes=classes)}
        config = dataclasses.replace(plan.config, method="air", data=data, own=own)
        (lora, *_) = synthetic_specs(config, plan.facts, samples=3, pixels=False)
        assert lora.recipe is not None
        recipes[classes] = lora.recipe.fingerprint
    (usual, *_) = synthetic_specs(plan.config, plan.facts, samples=3, pixels=False)
    assert usual.recipe is not None
    assert recipes["unseen"] != recipes["all"] == usual.recipe.fingerprint


def test_fp8_without_torchao_is_told_before_the_lora_is_learned(
    plan: Plan, features: Artefact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)  # importing it fails as if it were not there
    _refuses_the_lora(plan, features, tmp_path, "fp8-weights", r"synthesis\.precision=fp8-weights needs torchao")


def test_fp8_on_a_cpu_is_told_before_the_lora_is_learned(plan: Plan, features: Artefact, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="the extra fp8 is not installed")
    _refuses_the_lora(plan, features, tmp_path, "fp8", r"synthesis\.precision=fp8 needs GPUs .* a CPU")


def _refuses_the_lora(plan: Plan, features: Artefact, store: Path, precision: DenoiserPrecision, message: str) -> None:
    synthesis = dataclasses.replace(plan.config.synthesis, precision=precision)
    config = dataclasses.replace(plan.config, synthesis=synthesis, store=str(store))
    place = dataclasses.replace(plan, config=config)
    lora, _, _ = synthetic_specs(config, place.facts, samples=3, pixels=False)
    with pytest.raises(UserError, match=message):
        make_lora(place, lora, {"features": StageResult(artefact=features, reused=True)})
    assert not list(store.iterdir())


def test_the_lora_is_made_once_and_tells_its_steps(
    plan: Plan, features: Artefact, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("raydapt"), "propagate", True)
    caplog.set_level(logging.INFO, "raydapt")
    made = {"features": StageResult(artefact=features, reused=True)}
    specs = synthetic_specs(plan.config, plan.facts, samples=3, pixels=False)
    assert [(spec.name, spec.step) for spec in specs] == [
        ("lora", True),
        ("synthetic", False),
        ("synthetic_features", False),
    ]
    shown = dataclasses.replace(plan.config, ray=dataclasses.replace(plan.config.ray, progress="auto"))
    first = make_lora(dataclasses.replace(plan, config=shown), specs[0], made)
    assert [text for text in caplog.messages if text.startswith("lora: 3/3 steps (100 %)")]
    assert not first.reused
    assert first.artefact.manifest.stats["steps"] == 3
    assert make_lora(plan, specs[0], made).reused
