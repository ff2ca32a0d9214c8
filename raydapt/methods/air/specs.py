"""The synthetic images of a run and what is made of them, as artefacts. Imports diffusers, which takes seconds."""

from raydapt.artefacts.lora import KIND as LORA
from raydapt.artefacts.pixels import KIND as PIXELS
from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.artefacts.synthesis import plan_synthesis
from raydapt.artefacts.synthetic_images import KIND, SYNTHETIC, SYNTHETIC_FEATURES, SYNTHETIC_PIXELS
from raydapt.data.splits import seen_unseen_classes
from raydapt.methods.air.settings import AirSettings
from raydapt.settings.config import Config

NAMES = (SYNTHETIC, SYNTHETIC_FEATURES, SYNTHETIC_PIXELS)


def synthetic_specs(
    config: Config, facts: PlanFacts, *, samples: int, pixels: bool, names: tuple[str, str, str] = NAMES
) -> list[ArtefactSpec]:
    """The LoRA where one is trained, the images, their features, and their pixels where a method reads some.

    Args:
        config: Resolved.
        facts: Of the run.
        samples: Images of every class.
        pixels: Whether the method reads pixels.
        names: Of images, features and pixels within the run.
    """
    wanted = plan_synthesis(
        config.synthesis, config.lora, config.data, facts.classes, facts.features, taught=_taught(config, facts)
    )
    images, features, pixel_name = names
    specs, steps = [], []
    if wanted.lora is not None:
        steps = [LORA]
        specs.append(
            ArtefactSpec(
                name=LORA,
                kind=LORA,
                recipe=wanted.lora,
                depends_on=("features",),
                parts=range(0),
                step=True,
                job=wanted,
            )
        )
    specs.append(
        ArtefactSpec(
            name=images,
            kind=KIND,
            recipe=wanted.job.recipe,
            depends_on=("features", *steps),
            parts=wanted.job.parts(samples),
            job=(wanted, samples),
        )
    )
    specs.append(ArtefactSpec(name=features, kind="features", recipe=None, of=images))
    if pixels:
        specs.append(ArtefactSpec(name=pixel_name, kind=PIXELS, recipe=None, of=images))
    return specs


def _taught(config: Config, facts: PlanFacts) -> tuple[int, ...] | None:
    """The classes whose images teach AiR's LoRA, where these are not all: in TRZSL those without labels."""
    air = next((own for own in config.own.values() if isinstance(own, AirSettings)), None)
    if air is None or air.trzsl_classes == "all" or config.data.paradigm != "trzsl":
        return None
    _, unseen = seen_unseen_classes(len(facts.classes.names), config.data.split_seed, config.data.seen_share)
    return tuple(unseen)
