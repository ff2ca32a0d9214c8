"""What ``wca`` tells about itself; its settings are those of ``fair``."""

from dataclasses import replace

from raydapt.artefacts.inputs import InputKind
from raydapt.methods.contract import Method
from raydapt.methods.fair.method import input_kind_of
from raydapt.methods.fair.settings import FairSettings
from raydapt.methods.fair.spec import CropSpecs
from raydapt.methods.spec import BuildContext
from raydapt.methods.wca.method import Wca
from raydapt.settings.config import Config


class WcaSpec(CropSpecs):
    """See `raydapt.methods.wca.method.Wca`."""

    name = "wca"

    def build(self, context: BuildContext) -> Method:
        """The classifier."""
        return Wca(context.clip, context.classes, settings=context.config.of(FairSettings))

    def input_kind(self, config: Config) -> InputKind:
        """Cached features, with those of crops where some are taken."""
        return input_kind_of(replace(config.of(FairSettings), layer_norms=False))


SPEC = WcaSpec()
