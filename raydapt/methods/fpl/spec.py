"""What ``fpl`` tells about itself."""

from raydapt.artefacts.spec import PlanFacts
from raydapt.methods.air.part import AirPart
from raydapt.methods.fpl.method import Fpl
from raydapt.methods.fpl.settings import FplSettings
from raydapt.methods.prompting.method import PromptMethod
from raydapt.methods.prompting.spec import PromptSpec, prompted_clip
from raydapt.methods.spec import BuildContext
from raydapt.settings.config import Config


class FplSpec(PromptSpec):
    """See `raydapt.methods.fpl.method.Fpl`."""

    name = "fpl"
    pools_labels = True
    published_rate = 0.1

    def build_over(self, context: BuildContext, air: AirPart | None) -> PromptMethod:
        """The method with what AiR adds, or without."""
        config = context.config
        return Fpl(
            prompted_clip(context),
            context.zero_shot_embeddings(),
            context.images,
            settings=config.of(FplSettings),
            batch_size=config.train.batch_size,
            seed=config.seed,
            air=air,
        )

    def images_of_round(self, config: Config, facts: PlanFacts) -> int | None:
        """So many of each class."""
        return config.of(FplSettings).shots * len(facts.classes.names)


SPEC = FplSpec()
