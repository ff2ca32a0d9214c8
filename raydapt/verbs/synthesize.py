"""The verb ``synthesize``: synthetic images of every class, for any method."""

from raydapt.methods.air.specs import synthetic_specs
from raydapt.run.making import make_all
from raydapt.run.plan import FEATURES, make_plan
from raydapt.settings.config import Config


def synthesize(config: Config) -> str:
    """Makes the synthetic images of the settings (or finds them) and returns the artefact's folder."""
    plan = make_plan(config)
    made = synthetic_specs(plan.config, plan.facts, samples=config.synthesis.samples_per_class, pixels=False)
    wanted = [spec for spec in (*plan.artefacts, *made) if spec.name == FEATURES or (spec.of is None and spec in made)]
    return make_all(plan, wanted)[made[-2].name].artefact.folder.path
