"""Where and with what a stage works: the settings and facts of a run that all makers share."""

from dataclasses import dataclass

from raydapt.artefacts.spec import ArtefactSpec, PlanFacts
from raydapt.data.classes import ClassSpace
from raydapt.data.decode import ImageSpec
from raydapt.data.sources import Source
from raydapt.settings.config import Config
from raydapt.stages.context import StageContext
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe


@dataclass(frozen=True, kw_only=True)
class StagePlace:
    """What every maker is given."""

    config: Config
    """Resolved: no `auto` but for resources."""
    facts: PlanFacts
    stored_spec: ImageSpec
    """How images are stored where a method reads them, or cuts them."""

    @property
    def context(self) -> StageContext:
        """What stages that read images work with."""
        config = self.config
        return StageContext(store=self.store, ray=config.ray, settings=config.features, data=config.data)

    @property
    def store(self) -> Store:
        """The artefact store of the settings."""
        return Store(self.config.store)

    @property
    def source(self) -> Source:
        """The images."""
        return self.facts.source

    @property
    def classes(self) -> ClassSpace:
        """Names, labels and templates."""
        return self.facts.classes

    @property
    def image_spec(self) -> ImageSpec:
        """How the CLIP takes images."""
        return self.facts.image_spec

    @property
    def clip_identity(self) -> str:
        """Identity of the CLIP's weights."""
        return self.facts.clip_identity

    @property
    def features(self) -> Recipe:
        """The recipe of the images' features."""
        return self.facts.features


def is_there(place: StagePlace, spec: ArtefactSpec) -> bool:
    """Whether an artefact is in the store, with the parts that are wanted; False where its name is not known yet."""
    if spec.recipe is None:
        return False
    manifest = place.store.artefact_of(spec.recipe).find_manifest()
    return manifest is not None and (spec.parts is None or set(spec.parts) <= {shard.part for shard in manifest.shards})
