"""What ``zero_shot`` tells about itself."""

from raydapt.methods.contract import Method
from raydapt.methods.spec import BuildContext, MethodSpec
from raydapt.methods.zero_shot.method import ZeroShot


class ZeroShotSpec(MethodSpec):
    """The frozen model with the first template."""

    name = "zero_shot"
    guarded = False

    def build(self, context: BuildContext) -> Method:
        """The classifier."""
        return ZeroShot(context.clip, context.zero_shot_embeddings())


SPEC = ZeroShotSpec()
