"""What ``ensemble`` tells about itself."""

from raydapt.methods.contract import Method
from raydapt.methods.ensemble.method import Ensemble
from raydapt.methods.spec import BuildContext, MethodSpec


class EnsembleSpec(MethodSpec):
    """The frozen model with the mean of all templates."""

    name = "ensemble"

    def build(self, context: BuildContext) -> Method:
        """The classifier."""
        return Ensemble(context.clip, context.classes.names, context.classes.templates)


SPEC = EnsembleSpec()
