"""What ``grip`` tells about itself."""

from raydapt.methods.air.part import AirPart
from raydapt.methods.grip.method import Grip
from raydapt.methods.grip.settings import GripSettings
from raydapt.methods.prompting.method import PromptMethod
from raydapt.methods.prompting.spec import PromptSpec, prompted_clip
from raydapt.methods.spec import BuildContext
from raydapt.settings.config import Config


class GripSpec(PromptSpec):
    """See `raydapt.methods.grip.method.Grip`."""

    name = "grip"
    pools_labels = True
    published_rate = 0.1

    def build_over(self, context: BuildContext, air: AirPart | None) -> PromptMethod:
        """The method with what AiR adds, or without."""
        config = context.config
        return Grip(
            prompted_clip(context),
            context.zero_shot_embeddings(),
            context.images,
            settings=config.of(GripSettings),
            batch_size=config.train.batch_size,
            seed=config.seed,
            air=air,
        )

    def rounds(self, config: Config) -> int:
        """As the settings say."""
        return config.of(GripSettings).rounds


SPEC = GripSpec()
