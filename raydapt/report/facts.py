"""What the files of a run do not say of themselves and its method knows. A caller above hands it to the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What report and comparison need to know of a run's method.

    Attributes:
        groups: The groups of ``config.yaml`` that the run goes by, shared ones and its method's own; settings that
            stand in no group always count. None: every group.
        learned: What is learned, in words, such as ``text prompt``; empty where nothing is.
        adapts: False where the answers are zero-shot's own, so that there is no before and after.
        rank: Place of the method among others in a table.
        defaults: The settings of the same method before the user changed any, nested as in ``config.yaml``; empty
            where nobody knows them.
    """

    groups: tuple[str, ...] | None = None
    learned: str = ""
    adapts: bool = True
    rank: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def settings_that_matter(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the nested settings that the run goes by."""
        groups = self.groups
        return {k: v for k, v in config.items() if groups is None or not isinstance(v, dict) or k in groups}


FactsOf: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], RunFacts]
"""From a run's settings (``config.yaml``) and its ``metrics.json`` to the facts about its method."""


def no_facts(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> RunFacts:
    """For a run whose method nobody knows: all settings matter."""
    return RunFacts()
