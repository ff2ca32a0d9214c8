"""Descriptions of classes without an engine: what is asked, what names it, and what comes out of the answers."""

from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from raydapt.artefacts.descriptions import load_descriptions
from raydapt.data.descriptions import check_descriptions
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.settings.language import DescribeSettings
from raydapt.stages.commit import PART, PART_ROWS
from raydapt.stages.describe import DescribeJob, TextAsker
from raydapt.stages.questions import ANSWER, ASKED
from raydapt.store.artefact import StageResult, Store
from raydapt.verbs import describe as describing
from raydapt.verbs.describe import describe, describe_job

NAMES = tuple(f"class {i}" for i in range(20))


def job_of(names: tuple[str, ...] = NAMES, **settings: object) -> DescribeJob:
    return DescribeJob(class_names=names, settings=DescribeSettings(**settings), address="", identity="m")  # type: ignore[arg-type]


def test_every_class_is_asked_every_question_as_often_as_wanted():
    job = job_of(answers=3)
    rows = [row for part in (0, 1) for row in job.rows(part)]
    assert [row["row"] for row in rows] == list(range(20 * 5 * 3))
    assert {row[PART] for row in rows[: 16 * 15]} == {0}
    assert rows[0][PART_ROWS] == 16 * 15
    assert rows[-1][PART_ROWS] == 4 * 15
    assert len(job_of(greedy=True).rows(0)) == 16 * 5
    assert len(job_of(form="list", answers=2).rows(0)) == 16 * 2


def test_every_answer_has_its_own_seed_and_always_the_same_one():
    rows = job_of().rows(0)
    seeds = [TextAsker(seed=0)(row).seed for row in rows]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [TextAsker(seed=0)(row).seed for row in rows]
    assert seeds != [TextAsker(seed=1)(row).seed for row in rows]


def test_a_recipe_knows_what_decides_on_answers():
    assert job_of(replicas=3, batch_size=4).recipe == job_of().recipe
    for change in ({"answers": 2}, {"form": "list"}, {"seed": 1}, {"max_tokens": 9}):
        assert job_of(**change).recipe != job_of().recipe
    assert job_of(NAMES[:3]).recipe != job_of().recipe


def answered(job: DescribeJob, store: Store, answer: str) -> StageResult:
    artefact = store.artefact_of(job.recipe)
    rows = job.rows(0)
    texts = [f"{row['path']} {answer}" if answer else "" for row in rows]
    artefact.commit_part(
        0, pa.table({"path": [r["path"] for r in rows], ASKED: [r[ASKED] for r in rows], ANSWER: texts})
    )
    artefact.finish(job.recipe, [0], {}, {})
    return StageResult(artefact=artefact, reused=False)


def test_answers_become_a_file_that_descriptions_are_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    overrides = [f"describe.model={tmp_path / 'm'}", f"store={tmp_path / 'store'}", "data.class_names=[oak, pine]"]
    config = load_config(None, overrides)
    job = describe_job(config, ("oak", "pine"))
    monkeypatch.setattr(
        describing, "describe_stage", lambda job, store, **_: answered(job, store, "is a tree. It grows in the woods.")
    )
    file = describe(config, output=str(tmp_path / "out" / "trees.yaml"))
    found = yaml.safe_load(Path(file).read_text())
    assert found == {
        "oak": ["oak is a tree.", "It grows in the woods."],
        "pine": ["pine is a tree.", "It grows in the woods."],
    }
    assert check_descriptions(found, ["oak", "pine"], file) == found
    artefact = Store(config.store).artefact_of(job.recipe)
    assert load_descriptions(artefact, config.describe) == found
    assert Path(describe(config)).read_text() == Path(file).read_text()


def test_a_class_without_a_usable_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = load_config(None, ["describe.engine=openai", "describe.base_url=http://x/v1", f"store={tmp_path}"])
    monkeypatch.setattr(describing, "describe_stage", lambda job, store, **_: answered(job, store, ""))
    with pytest.raises(UserError, match="no usable description of 10 classes, such as '0'"):
        describe(config)


def test_a_model_that_is_none_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"describe\.model='./nowhere'"):
        describe(load_config(None, ["describe.model=./nowhere", f"store={tmp_path}"]))
