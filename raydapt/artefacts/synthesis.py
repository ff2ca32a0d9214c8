"""What is synthesised, decided before it is made: prompts, sampling, and the LoRA that it may need first.

Everything has a name before it is made: the recipe of the images holds that of the LoRA, and that of the features.
Importing this file imports diffusers, which takes seconds; see `raydapt.artefacts.synthetic_images` for the loaders.
"""

import hashlib
from dataclasses import dataclass, replace

from raydapt.artefacts.lora import lora_recipe
from raydapt.artefacts.synthetic_images import synthesis_recipe
from raydapt.data.classes import ClassSpace
from raydapt.errors import UserError
from raydapt.models.diffusion import Sampling
from raydapt.models.diffusion_lora import read_lora
from raydapt.models.pipelines import native_size_px, pipeline_identity, require_trainable
from raydapt.settings.groups import DataSettings, LoraSettings, SynthesisSettings
from raydapt.store.fingerprint import Recipe


@dataclass(frozen=True, kw_only=True)
class SynthesisJob:
    """What is made: resolved settings, nothing of how the work is spread.

    Attributes:
        class_names: All classes, in the order of the run.
        template: The prompt, with one ``{}``.
        pipeline: Name that the actors load the pipeline by.
        identity: Identity of its weights.
        sampling: How an image is made of a prompt.
        lora: LoRA weights, the bytes of a safetensors file in diffusers' layout; None for the pipeline as it is.
        lora_identity: What they are, for the fingerprint.
    """

    class_names: tuple[str, ...]
    template: str
    pipeline: str
    identity: str
    sampling: Sampling
    lora: bytes | None = None
    lora_identity: str = ""

    def with_lora(self, data: bytes) -> "SynthesisJob":
        """The same images by the pipeline with these LoRA weights, named by their digest."""
        return replace(self, lora=data, lora_identity=hashlib.sha256(data).hexdigest()[:16])

    @property
    def recipe(self) -> Recipe:
        """What the images depend on; how many there are is not part of it."""
        return synthesis_recipe(self.class_names, self.template, self.sampling, self.identity, self.lora_identity)

    def parts(self, samples_per_class: int) -> range:
        """The parts that hold so many images of every class; the last block of a class may hold more."""
        return range(-(-samples_per_class // self.sampling.batch_size) * len(self.class_names))

    def place(self, part: int) -> tuple[int, range]:
        """The class of a part, and the numbers of its images."""
        block, class_ = divmod(part, len(self.class_names))
        size = self.sampling.batch_size
        return class_, range(block * size, (block + 1) * size)


@dataclass(frozen=True, kw_only=True)
class SynthesisPlan:
    """The images that are to be made, decided."""

    job: SynthesisJob
    """Complete but for the weights of a LoRA that is to be trained first."""
    lora: Recipe | None
    """The LoRA that is to be trained first; None when there is none, or a given one."""
    taught: tuple[int, ...] | None = None
    """The classes whose images teach it; None: all."""


def plan_synthesis(
    settings: SynthesisSettings,
    lora: LoraSettings,
    data: DataSettings,
    classes: ClassSpace,
    features: Recipe,
    *,
    taught: tuple[int, ...] | None = None,
) -> SynthesisPlan:
    """Resolves the settings of the synthetic images; loads no model.

    Args:
        settings: Of the images.
        lora: Of the LoRA.
        data: Splits and templates of the images that the LoRA is taught by.
        classes: The classes of the run.
        features: The recipe of its features, which the LoRA's pseudo-labels depend on.
        taught: The classes whose images teach the LoRA; None: all.

    Raises:
        UserError: For a pipeline, a LoRA folder or a template that cannot work.
    """
    template = classes.templates[0] if settings.template == "auto" else settings.template
    if template.count("{}") != 1:
        raise UserError(f"Setting synthesis.template={template!r} must hold exactly one {{}}, the place of the class.")
    size_px = native_size_px(settings.pipeline) if settings.size_px == "auto" else settings.size_px
    sampling = Sampling(
        scheduler=settings.scheduler,
        steps=settings.steps,
        guidance=settings.guidance,
        negative_prompt=settings.negative_prompt,
        size_px=size_px,
        seed=settings.seed,
        batch_size=settings.batch_size,
        precision=settings.precision,
    )
    job = SynthesisJob(
        class_names=classes.names,
        template=template,
        pipeline=settings.pipeline,
        identity=pipeline_identity(settings.pipeline),
        sampling=sampling,
    )
    if settings.lora is not None:
        weights = read_lora(settings.lora, rank=lora.rank)
        return SynthesisPlan(job=job.with_lora(weights), lora=None)
    if not lora.enabled:
        return SynthesisPlan(job=job, lora=None)
    require_trainable(settings.pipeline)
    recipe = lora_recipe(lora, data, classes.names, template, sampling, features=features, identity=job.identity)
    if taught is not None:
        recipe = replace(recipe, settings={**recipe.settings, "taught": list(taught)})
    return SynthesisPlan(job=replace(job, lora_identity=recipe.fingerprint), lora=recipe, taught=taught)
