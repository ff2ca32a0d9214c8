"""A class prior that somebody stated, held against what a run predicts. No label is read here.

Legend: N rows of the features artefact, S sampled training images, C classes.
"""

import torch

from raydapt.artefacts.inputs import images_of
from raydapt.methods.class_prior import class_prior
from raydapt.methods.even_sample import even_sample
from raydapt.methods.predictions import predict_classes
from raydapt.methods.spec import FinishedRun

_MOST_IMAGES = 4096
"""Unlabelled images that are looked at, evenly spread: enough for shares to a percent."""


def prior_notes(finished: FinishedRun) -> list[str]:
    """A sentence where the adapted answers for the training images contradict a stated prior; none where not."""
    names, row_N = finished.classes.names, finished.row_N
    prior = class_prior(finished.config.data.class_prior, names)
    if not prior.known or not len(row_N):
        return []
    row_S = even_sample(row_N, _MOST_IMAGES)
    found = predict_classes(
        finished.method,
        images_of(finished.method.input_kind, finished.table, finished.artefacts, finished.config.train.cache_gb),
        row_S,
        batch_size=finished.config.train.predict_batch_size,
        device=finished.device,
    )
    said = prior.contradiction(torch.bincount(found.class_T, minlength=len(names)), names)
    return [said] if said else []
