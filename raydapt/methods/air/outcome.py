"""What AiR's synthetic images came to: how many zero-shot accepts, and some to look at.

Legend: M synthetic images, C classes, D width.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from raydapt.artefacts.synthetic_images import SYNTHETIC, SyntheticImages, synthetic_images
from raydapt.data.reread import thumbnail
from raydapt.methods.air.settings import AirSettings
from raydapt.methods.spec import FinishedRun

_SHOWN_CLASSES, _SHOWN_PER_CLASS, _TOP = 24, 6, 5
_SCHEMA = pa.schema([("class", pa.string()), ("index", pa.int64()), ("image", pa.binary())])


def synthetic_outcome(finished: FinishedRun) -> dict[str, Any]:
    """Writes ``synthetic.parquet`` and returns the group ``synthetic`` of metrics.json; nothing without images."""
    if SYNTHETIC not in finished.artefacts:
        return {}
    config, names = finished.config, finished.classes.names
    finished.record.write_table("synthetic.parquet", _some_images(finished))
    synthetic = synthetic_images(finished.artefacts, names, config.synthesis.samples_per_class, config.train.cache_gb)
    class_CD = finished.clip.class_embeddings(names, finished.classes.templates[:1])
    top = config.of(AirSettings).cleaning_top or _TOP
    return {"synthetic": synthetic_metrics(synthetic, class_CD, names, top=top)}


def synthetic_metrics(
    synthetic: SyntheticImages, class_CD: Tensor, names: Sequence[str], *, top: int
) -> dict[str, Any]:
    """How many images zero-shot takes for the class that they were made of.

    Args:
        synthetic: The images.
        class_CD: Class embeddings of the plain prompt.
        names: Of the classes.
        top: Ranks up to which a class is also counted as accepted.
    """
    score_MC, class_M = synthetic.feature_MD @ class_CD.cpu().T, synthetic.class_M
    rank_M = (score_MC > score_MC.gather(1, class_M[:, None])).sum(dim=1)
    per_class = [
        {"name": name, "images": int((class_M == c).sum()), "accepted": _percent(rank_M[class_M == c] == 0)}
        for c, name in enumerate(names)
    ]
    shares = {"accepted": _percent(rank_M == 0), "top": top, "accepted_in_top": _percent(rank_M < top)}
    return {"images": len(class_M), **shares, "per_class": per_class}


def _some_images(finished: FinishedRun) -> pa.Table:
    """Thumbnails of the first synthetic images of each of the first classes, none picked."""
    from raydapt.artefacts.synthetic_images import load_synthetic  # diffusers takes seconds to import

    names, count = finished.classes.names, finished.config.synthesis.samples_per_class
    made = load_synthetic(finished.artefacts[SYNTHETIC], min(_SHOWN_PER_CLASS, count))
    rows = [
        {"class": names[class_], "index": index, "image": thumbnail(image, finished.config.data)}
        for class_, index, image in zip(made.class_M.tolist(), made.index_M.tolist(), made.image_M, strict=True)
        if class_ < _SHOWN_CLASSES and image is not None
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _percent(right_M: torch.Tensor) -> float | None:
    """Share that is true in percent; None of nothing."""
    return 100.0 * float(right_M.double().mean()) if len(right_M) else None
