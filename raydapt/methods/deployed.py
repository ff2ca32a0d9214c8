"""Methods that come to class embeddings against CLIP's image tower, as one module to deploy.

Legend: C classes, D width of CLIP's space.
"""

import torch
from torch import Tensor

from raydapt.errors import UserError
from raydapt.methods.contract import Method
from raydapt.models.clip import Clip
from raydapt.models.deployed import DeployedClip


@torch.no_grad()
def deployed_clip(method: Method, clip: Clip) -> DeployedClip:
    """The image tower with the method's class embeddings, in evaluation mode.

    Raises:
        UserError: For a method whose logits are not linear in the image feature.
    """
    return DeployedClip(clip, _class_embeddings(method, clip)).eval()


def _class_embeddings(method: Method, clip: Clip) -> Tensor:
    """Class embeddings [C, D], found by asking for the logits of unit vectors."""
    if method.input_kind == "features":
        unit_DD = torch.eye(clip.embed_dim, device=clip.device)
        logits_DC = method.eval().logits(unit_DD)
        if torch.allclose(method.logits(-2 * unit_DD), -2 * logits_DC, rtol=1e-4, atol=1e-4):
            return logits_DC.T / clip.logit_scale
    raise UserError(
        f"Method {type(method).__name__} is more than an image encoder with class embeddings, so that it cannot be "
        "exported as one: use 'raydapt predict', or export another run."
    )
