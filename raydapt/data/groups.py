"""Which images are described together: four of one zero-shot class, drawn for every image (LatteCLIP).

Legend: N images, 4 places of a group.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raydapt.data.canvas import PER_GROUP


def draw_groups(class_N: npt.NDArray[np.int64], id_N: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """Draws a group for every image among the images of its class.

    Without replacement, but for classes of fewer than four images. What is drawn depends on the image's id, the seed
    and the members of its class alone.

    Args:
        class_N: Class of each image; -1 for images that take no part.
        id_N: Content ids.
        seed: Of the draws.

    Returns:
        int64 [N, 4] positions among the N images; -1 where there is no class.
    """
    group_N4 = np.full((len(class_N), PER_GROUP), -1, dtype=np.int64)
    members_of = {int(c): np.flatnonzero(class_N == c) for c in np.unique(class_N) if c >= 0}
    for i, c in enumerate(class_N.tolist()):
        if c >= 0:
            members = members_of[c]
            draw = np.random.default_rng(seed_of_text(seed, id_N[i]))
            group_N4[i] = members[draw.choice(len(members), PER_GROUP, replace=len(members) < PER_GROUP)]
    return group_N4


def seed_of_text(seed: int, text: str) -> int:
    """A 64-bit seed of its own for every text."""
    return int.from_bytes(hashlib.blake2b(json.dumps([seed, text]).encode(), digest_size=8).digest(), "big")
