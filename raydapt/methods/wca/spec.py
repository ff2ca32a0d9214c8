"""What ``wca`` tells about itself; most of its settings are those of ``fair``."""

from dataclasses import replace

from raydapt.artefacts.inputs import InputKind
from raydapt.methods.contract import Method
from raydapt.methods.fair.method import input_kind_of
from raydapt.methods.fair.settings import FairSettings
from raydapt.methods.fair.spec import CropSpecs
from raydapt.methods.spec import BuildContext
from raydapt.methods.wca.method import Wca
from raydapt.methods.wca.settings import WcaSettings
from raydapt.settings.config import Config


class WcaSpec(CropSpecs):
    """See `raydapt.methods.wca.method.Wca`."""

    name = "wca"

    def build(self, context: BuildContext) -> Method:
        """The classifier."""
        settings, unit_means = context.config.of(FairSettings), context.config.of(WcaSettings).unit_means
        return Wca(context.clip, context.classes, settings=settings, unit_means=unit_means)

    def input_kind(self, config: Config) -> InputKind:
        """Cached features, with those of crops where some are taken."""
        return input_kind_of(replace(config.of(FairSettings), layer_norms=False))


SPEC = WcaSpec()
