"""What finished runs answer for the images of another one, read back.

Legend: N images, C classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from raydapt.store.artefact import Artefact

ANSWERS = "answers"
"""The kind of artefact: class probabilities of every image, in the order of the features."""


def load_answers(artefact: Artefact) -> Tensor:
    """float32 probabilities [N, C] in the order of the features."""
    rows = [
        torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy()).view(len(column), -1)
        for table in artefact.iter_tables(["probability"])
        for column in [table["probability"].combine_chunks()]
    ]
    return torch.cat(rows)


def mean_answers(artefacts: Mapping[str, Artefact]) -> Tensor | None:
    """The mean float32 [N, C] of the answers of all runs among the artefacts; None without any."""
    names = [name for name in artefacts if name.startswith(f"{ANSWERS}_")]
    if not names:
        return None
    sum_NC = load_answers(artefacts[names[0]])
    for name in names[1:]:
        sum_NC += load_answers(artefacts[name])
    return sum_NC / len(names)
