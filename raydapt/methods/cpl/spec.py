"""What ``cpl`` tells about itself."""

from raydapt.artefacts.spec import PlanFacts
from raydapt.methods.air.part import AirPart
from raydapt.methods.cpl.method import Cpl
from raydapt.methods.cpl.resolve import resolve_cpl
from raydapt.methods.cpl.settings import CplSettings
from raydapt.methods.prompting.method import PromptMethod
from raydapt.methods.prompting.spec import PromptSpec, prompted_clip
from raydapt.methods.spec import BuildContext
from raydapt.settings.config import Config


class CplSpec(PromptSpec):
    """See `raydapt.methods.cpl.method.Cpl`."""

    name = "cpl"

    def build_over(self, context: BuildContext, air: AirPart | None) -> PromptMethod:
        """The method with what AiR adds, or without."""
        config = context.config
        return Cpl(
            prompted_clip(context),
            context.zero_shot_embeddings(),
            context.images,
            settings=config.of(CplSettings),
            batch_size=config.train.batch_size,
            seed=config.seed,
            air=air,
        )

    def rounds(self, config: Config) -> int:
        """As the settings say."""
        return config.of(CplSettings).rounds

    def resolve(self, config: Config, facts: PlanFacts) -> Config:
        """The published thresholds of the named set."""
        return config.with_own(resolve_cpl(config, len(facts.classes.names)))


SPEC = CplSpec()
