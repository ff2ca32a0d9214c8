"""Descriptions of classes by an instruct language model: one row per class, question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raydapt.artefacts.descriptions import descriptions_recipe
from raydapt.data.description_texts import questions_of
from raydapt.data.groups import seed_of_text
from raydapt.settings.groups import RaySettings
from raydapt.settings.language import DescribeSettings
from raydapt.stages.asking import answer_s, ask, parts_here
from raydapt.stages.commit import PART, PART_ROWS
from raydapt.stages.engine_work import WORK_FIELDS
from raydapt.stages.questions import ANSWER, ASKED, ERROR, SECONDS, Prompt, Questions
from raydapt.stages.run import Parts, Stage, run_stage
from raydapt.store.artefact import StageResult, Store
from raydapt.store.fingerprint import Recipe

if TYPE_CHECKING:
    import ray.data

_CLASSES_PER_PART = 16
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("path", pa.string()),
        (ASKED, pa.string()),
        (ANSWER, pa.string()),
        (SECONDS, pa.float64()),
        (ERROR, pa.string()),
        (PART, pa.int64()),
        (PART_ROWS, pa.int64()),
        *WORK_FIELDS,
    ]
)


@dataclass(frozen=True, kw_only=True)
class DescribeJob:
    """What is asked about which classes, by which model.

    Attributes:
        class_names: All classes.
        settings: The questions, the model and its engine.
        address: The model, see `raydapt.models.language.model_address`.
        identity: Identity of its weights.
    """

    class_names: tuple[str, ...]
    settings: DescribeSettings
    address: str
    identity: str

    @property
    def recipe(self) -> Recipe:
        """What the answers depend on."""
        return descriptions_recipe(self.class_names, self.settings, self.identity)

    def questions(self, class_: int) -> list[str]:
        """All questions about a class, each as often as it is to be answered."""
        settings = self.settings
        asked = questions_of(self.class_names[class_], form=settings.form, sentences=settings.sentences)
        return [question for question in asked for _ in range(1 if settings.greedy else settings.answers)]

    def rows(self, part: int) -> list[dict[str, Any]]:
        """The rows of a part."""
        classes = range(len(self.class_names))[part * _CLASSES_PER_PART : (part + 1) * _CLASSES_PER_PART]
        asked = [(self.class_names[c], question) for c in classes for question in self.questions(c)]
        first = part * _CLASSES_PER_PART * len(self.questions(0))
        return [
            {"row": first + place, "path": name, ASKED: question, PART: part, PART_ROWS: len(asked)}
            for place, (name, question) in enumerate(asked)
        ]


@dataclass(frozen=True, kw_only=True)
class TextAsker:
    """Makes the question of a row; the seed of its answer depends on the setting and the row."""

    seed: int

    def __call__(self, row: dict[str, Any]) -> Prompt:
        """The question as it stands in the row."""
        return Prompt(text=row[ASKED], seed=seed_of_text(self.seed, f"{row['row']} {row[ASKED]}") >> 1)


def describe_stage(job: DescribeJob, *, ray_settings: RaySettings, store: Store) -> StageResult:
    """Asks a language model about every class, or finds its answers in the store.

    Raises:
        UserError: For a model that is none, and see `raydapt.stages.run.run_stage`.
    """
    settings = job.settings
    questions = Questions(
        build=TextAsker(seed=settings.seed),
        texts=lambda: [asked for class_ in range(len(job.class_names)) for asked in job.questions(class_)],
        images=False,
        schema=_SCHEMA,
        setting="describe",
    )

    def here(pending: Sequence[int]) -> Parts:
        rows = (pa.Table.from_pylist(job.rows(part)) for part in pending)
        return parts_here(rows, questions, settings, address=job.address)

    def dataset_of(pending: Sequence[int]) -> tuple[ray.data.Dataset, int]:
        import ray.data

        rows = ray.data.from_items([row for part in pending for row in job.rows(part)])
        return ask(rows, questions, settings, address=job.address, ray_settings=ray_settings)

    n_parts = -(-len(job.class_names) // _CLASSES_PER_PART)
    stage = Stage(
        recipe=job.recipe,
        parts=range(n_parts),
        dataset_of=dataset_of,
        here=here,
        row_s=lambda: answer_s(settings, job.address, images=False),
        rows=len(job.class_names) * len(job.questions(0)),
        max_error_share=0.0,
        ray=ray_settings,
        unit="answers",
    )
    return run_stage(store, stage)
