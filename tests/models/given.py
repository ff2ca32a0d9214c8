"""Class embeddings without a model."""

from collections.abc import Sequence

import numpy as np

from raydapt.data.class_features import MEAN, ClassFeatures
from raydapt.data.vectors import unit_vectors
from raydapt.models.given_embeddings import GivenEmbeddings


def given(
    names: Sequence[str], *, width: int, templates: Sequence[str] = ("a photo of a {}.", "a {}")
) -> GivenEmbeddings:
    """A vector for each class and wording."""
    value = np.random.default_rng(0).standard_normal((len(names) * len(templates), width))
    features = ClassFeatures(
        uri="given.parquet",
        names=tuple(names),
        class_M=np.repeat(np.arange(len(names)), len(templates)),
        template_M=tuple(templates) * len(names) or (MEAN,),
        feature_MD=unit_vectors(value).vector_ND,
    )
    return GivenEmbeddings(features, logit_scale=100.0)
