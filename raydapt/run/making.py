"""Carries out what a plan needs, in its order; what is in the store already is found, not made."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from raydapt.artefacts.answers import ANSWERS
from raydapt.artefacts.features import load_features
from raydapt.artefacts.inputs import images_of
from raydapt.artefacts.spec import ArtefactSpec
from raydapt.run.finished import load_learned
from raydapt.run.plan import FEATURES, Plan, artefacts_of_run, make_plan
from raydapt.run.teachers import TeacherRun
from raydapt.stages.makers import MAKERS, Maker
from raydapt.stages.place import StagePlace, is_there
from raydapt.stages.vllm_process import engines_kept
from raydapt.store.artefact import Artefact, StageResult
from raydapt.store.environment import versions
from raydapt.train.job import build_for_prediction, zero_shot_of
from raydapt.train.loop import predict
from raydapt.train.ray_train import local_context


def make_artefacts(plan: Plan, *, to_learn: bool = True) -> dict[str, StageResult]:
    """Everything that the method of a plan reads, by name.

    Args:
        plan: The run.
        to_learn: False for what a method that has learned needs to predict.
    """
    specs = plan.artefacts if to_learn else artefacts_of_run(plan.config, plan.facts, to_learn=False)
    return make_all(plan, specs)


def make_features(plan: Plan) -> StageResult:
    """The features of the plan's source, made or found."""
    return make_all(plan, [spec for spec in plan.artefacts if spec.name == FEATURES])[FEATURES]


def make_all(
    plan: StagePlace, specs: Iterable[ArtefactSpec], made: Mapping[str, StageResult] | None = None
) -> dict[str, StageResult]:
    """Makes artefacts in their order.

    Args:
        plan: Where and with what.
        specs: What is wanted.
        made: What is there already and may be read.
    """
    specs, results = list(specs), dict(made or {})
    with engines_kept():
        for spec in specs:
            readers = [other for other in specs if spec.name in other.depends_on]
            if spec.step and not _complete(plan, spec) and all(is_there(plan, reader) for reader in readers):
                continue
            maker: Maker = {**MAKERS, ANSWERS: make_answers}[spec.kind]
            results[spec.name] = maker(plan, spec, results)
    return results


def artefacts_of(made: Mapping[str, StageResult]) -> dict[str, Artefact]:
    """The artefacts alone."""
    return {name: result.artefact for name, result in made.items()}


def _complete(plan: StagePlace, spec: ArtefactSpec) -> bool:
    return spec.recipe is not None and plan.store.artefact_of(spec.recipe).complete()


def make_answers(place: StagePlace, spec: ArtefactSpec, made: Mapping[str, StageResult]) -> StageResult:
    """Class probabilities that a finished run gives every image of this one, part by part, made or found."""
    assert spec.recipe is not None
    artefact, features = place.store.artefact_of(spec.recipe), made[FEATURES].artefact
    if artefact.complete():
        return StageResult(artefact=artefact, reused=True)
    with artefact.lock():
        if artefact.complete():  # another process made it while this one waited for the lock
            return StageResult(artefact=artefact, reused=True)
        started, there, computed, start = time.monotonic(), artefact.committed_parts(), 0, 0
        answer = _answers_of(spec.job, place)
        for shard in features.manifest.shards:
            if shard.part not in there:
                artefact.commit_part(shard.part, _answer_table(answer(torch.arange(start, start + shard.rows))))
                computed += shard.rows
            start += shard.rows
        seconds = time.monotonic() - started
        stats: dict[str, object] = {"seconds": round(seconds, 3), "rows": start}
        stats |= {"rows_per_s": round(computed / seconds, 3), "run": spec.job.run.name, "answer": spec.job.answer}
        artefact.finish(spec.recipe, [shard.part for shard in features.manifest.shards], stats, versions())
    return StageResult(artefact=artefact, reused=False)


def _answer_table(probability_MC: torch.Tensor) -> pa.Table:
    flat = pa.array(probability_MC.numpy().astype(np.float32).reshape(-1))
    return pa.table({"probability": pa.FixedSizeListArray.from_arrays(flat, probability_MC.shape[1])})


def _answers_of(teacher: TeacherRun, place: StagePlace) -> Callable[[torch.Tensor], torch.Tensor]:
    """A finished run as a function from rows of the place's source to class probabilities [M, C]."""
    config, ours = teacher.config, place.config
    data = replace(ours.data, templates=config.data.templates)
    applied = make_plan(replace(config, data=data, store=ours.store, ray=ours.ray, features=ours.features))
    artefacts = artefacts_of(make_artefacts(applied, to_learn=False))
    device, batch_size = local_context(config.train).device, config.train.predict_batch_size
    method = load_learned(build_for_prediction(applied.config, applied.classes, device, artefacts), teacher.run, config)
    table = load_features(artefacts[FEATURES])
    image_N = images_of(method.input_kind, table, artefacts, ours.train.cache_gb)

    def adapted(row_M: torch.Tensor) -> torch.Tensor:
        return predict(method, image_N.__getitem__, row_M, batch_size=batch_size, device=device)

    if teacher.answer == "adapted":
        return adapted
    plain = zero_shot_of(applied.config, applied.classes, device)

    def zero_shot(row_M: torch.Tensor) -> torch.Tensor:
        return predict(plain, table.feature_ND.__getitem__, row_M, batch_size=batch_size, device=device)

    return zero_shot if teacher.answer == "zero-shot" else lambda row_M: (adapted(row_M) + zero_shot(row_M)) / 2
