"""What ``transduct`` tells about itself."""

from typing import Any

from torch import nn

from raydapt.methods.contract import Method
from raydapt.methods.spec import BuildContext, FinishedRun, MethodSpec
from raydapt.methods.transduct.fit import fit
from raydapt.methods.transduct.method import Transduct
from raydapt.methods.transduct.outcome import transductive_outcome
from raydapt.methods.transduct.settings import TransductSettings
from raydapt.models.clip import Clip
from raydapt.models.deployed import DeployedClip
from raydapt.settings.config import Config


class TransductSpec(MethodSpec):
    """See `raydapt.methods.transduct.method.Transduct`."""

    name = "transduct"
    paradigms = ("ul",)
    fits_at_once = True

    def build(self, context: BuildContext) -> Method:
        """Fitted to the unlabelled images; without images a method that is only to predict."""
        settings, clip, images = context.config.of(TransductSettings), context.clip, context.images
        text_CD = clip.class_embeddings(context.classes.names, context.classes.templates)
        fitted = None
        if images is not None:
            feature_ND = images.feature_ND[images.unlabelled_U].to(text_CD.device)
            stated_C = context.prior.log_prior()
            stated_C = None if stated_C is None else stated_C.to(text_CD)
            fitted = fit(feature_ND, text_CD, clip.logit_scale, settings, log_prior_C=stated_C)
        return Transduct(clip, text_CD, settings.text_strength, fitted)

    def learned(self, config: Config) -> str:
        """The mixture."""
        return "class means and shares of a mixture"

    def outcome(self, finished: FinishedRun) -> dict[str, Any]:
        """The transductive answers for the images that were fitted, and the class shares found."""
        return {"transduct": transductive_outcome(finished)}

    def deployable(self, method: Method, clip: Clip) -> nn.Module:
        """The image tower with class embeddings and a bias: texts and mixture together are one linear head."""
        assert isinstance(method, Transduct)
        weight_CD = method.text_strength * method.text_CD + method.weight_CD / clip.logit_scale
        return DeployedClip(clip, weight_CD, bias_C=method.bias_C).eval()


SPEC = TransductSpec()
