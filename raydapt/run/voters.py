"""Adapted runs as annotators: what they answer takes the place of the templates' votes in Co-Reg (ours).

Co-Reg asks the frozen model under many wordings. A run that has adapted the model to the same images knows more than
any wording, so the small students of `coreg` can start from its answers: adapt first, then make it small.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from raydapt.methods.partial_labels import PartialLabels, annotate_votes
from raydapt.run.finished import load_learned, open_run
from raydapt.run.plan import Plan, make_plan
from raydapt.stages.annotate import Annotator
from raydapt.stages.artefacts import FEATURES, artefacts_of, make_artefacts
from raydapt.stages.features import load_features
from raydapt.train.job import build_for_prediction, images_of
from raydapt.train.loop import predict
from raydapt.train.ray_train import local_place


def run_annotator(plan: Plan) -> Annotator:
    """What annotates the images of a plan by the answers of its ``coreg.voters``.

    Every run counts as one template does: with ``annotation=prompts`` the best class of each is a candidate.
    """
    answers, settings = [_answers_of(folder, plan) for folder in plan.config.coreg.voters], plan.config.coreg

    def annotate_rows(row_M: Tensor, _: Tensor) -> PartialLabels:
        probability_RMC = torch.stack([answer(row_M) for answer in answers])
        return annotate_votes(probability_RMC, mode=settings.annotation, topk=settings.topk, ratio=settings.prob_ratio)

    return annotate_rows


def _answers_of(folder: str, plan: Plan) -> Callable[[Tensor], Tensor]:
    """A finished run as a function from rows of the plan's source to class probabilities [M, C]."""
    run, config = open_run(folder)
    data = replace(plan.config.data, templates=config.data.templates)
    ours = plan.config
    applied = make_plan(replace(config, data=data, store=ours.store, ray=ours.ray, features=ours.features))
    artefacts = artefacts_of(make_artefacts(applied, to_learn=False))
    device, batch_size = local_place(config.train).device, config.train.predict_batch_size
    method = load_learned(build_for_prediction(applied.config, applied.classes, device, artefacts), run, config)
    image_N = images_of(method.reads, load_features(artefacts[FEATURES]), artefacts)
    return lambda row_M: predict(method, image_N.__getitem__, row_M, batch_size=batch_size, device=device)
