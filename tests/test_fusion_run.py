"""Whole runs of fusion on features: the runs that it is made of, what it tells, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raydapt.artefacts.answers import load_answers
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.fusion.fused_answers import fused_answers
from raydapt.run import pipeline
from raydapt.run.guarding import stored_judgement
from raydapt.run.making import artefacts_of, make_artefacts
from raydapt.run.members import member_configs
from raydapt.run.plan import make_plan
from raydapt.run.prediction import predict
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from tests.data.features import unit, write

NAMES, WIDTH = ["cat", "dog", "sea"], 16
TWO = 'fusion.classifiers=["cpl cpl.rounds=2 train.epochs=2 train.batch_size=32", "fpl train.epochs=2"]'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 features around three directions, and class embeddings that are turned away from these."""
    folder, generator = tmp_path_factory.mktemp("fusion"), np.random.default_rng(0)
    centre_CD = unit(generator.standard_normal((3, WIDTH)))
    class_N = np.arange(120) % 3
    feature_ND = unit(centre_CD[class_N] + 0.2 * generator.standard_normal((120, WIDTH)))
    splits = np.where(np.arange(120) % 9 < 6, "train", "test").tolist()
    write(folder / "x.parquet", feature_ND.astype(np.float32), label=[NAMES[c] for c in class_N], split=splits)
    class_CD = unit(centre_CD + 0.25 * generator.standard_normal((3, WIDTH))).astype(np.float32)
    write(folder / "classes.parquet", class_CD, name=NAMES)
    return folder


def job(folder: Path, *overrides: str, method: str = "fusion") -> Config:
    places = [f"runs={folder}/runs", f"store={folder}/store", "ray.progress=false"]
    given = [f"data.source={folder}/x.parquet", f"data.class_features={folder}/classes.parquet"]
    return load_config(None, [f"method={method}", *places, *given, *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["auto", "guarded", "adapted"])
def test_a_run_is_made_of_runs_and_learns_from_their_answers(folder: Path, answers: str) -> None:
    given = job(folder, TWO, f"fusion.answers={answers}", f"runs={folder}/{answers}")
    record = pipeline.run(given)
    metrics = json.loads(record.read_bytes("metrics.json"))
    told = metrics["fusion"]["classifiers"]
    assert [row["run"].split("-")[0] for row in told] == ["cpl", "fpl"]
    assert metrics["unguarded"]["top1"] >= metrics["zero_shot"]["top1"] > 60
    assert "as much as its guard keeps" in record.read_bytes("report.html").decode()
    judged = [stored_judgement(Run(f"{folder}/{answers}", row["run"])) for row in told]
    kept, evidence = ([one[part] for one in judged] for part in (0, 1))
    assert None not in evidence
    expected = {"adapted": ["adapted"] * 2, "guarded": kept, "auto": fused_answers(kept, evidence)}[answers]
    assert [row["answer"] for row in told] == expected
    output = predict(record.path, [])
    assert Path(output).exists()
    again = pipeline.run(given)  # all of it is there
    assert again.path == record.path
    assert len(list((folder / answers).iterdir())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["zero-shot", "mean of both"])
def test_what_a_guard_did_not_keep_is_not_fused(folder: Path, answer: str) -> None:
    run = pipeline.run(job(folder, "train.epochs=2", f"name=fpl-{answer[:4]}", method="fpl"))
    metrics = json.loads(run.read_bytes("metrics.json"))
    run.write_json("metrics.json", metrics | {"answer": answer})
    over = ("fusion.classifiers=[]", f"fusion.over=[{run.path}]")
    plan = make_plan(job(folder, *over, "fusion.answers=guarded"))
    made = artefacts_of(make_artefacts(plan))
    found_NC = load_answers(made["answers_0"])
    plan = make_plan(job(folder, *over, "fusion.answers=adapted"))
    adapted_NC = load_answers(artefacts_of(make_artefacts(plan))["answers_0"])
    feature_ND = torch.tensor(unit(np.stack(pq.read_table(folder / "x.parquet")["feature"].to_pylist())))
    text_CD = torch.tensor(np.stack(pq.read_table(folder / "classes.parquet")["feature"].to_pylist()))
    zero_NC = (100 * feature_ND.float() @ text_CD.float().T).softmax(dim=1)
    expected_NC = zero_NC if answer == "zero-shot" else (zero_NC + adapted_NC) / 2
    torch.testing.assert_close(found_NC, expected_NC, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(adapted_NC, zero_NC, atol=1e-3)


def test_members_take_what_the_job_changes_and_keep_their_recipes_and_guards(folder: Path) -> None:
    members = member_configs(job(folder, "guard=false", "seed=3", "train.max_steps_per_round=7", "name=mine"))
    assert [member.method for member in members] == ["cpl", "fpl", "fair", "latteclip"]
    assert {member.seed for member in members} == {3}
    assert {member.train.max_steps_per_round for member in members} == {7}
    assert all(member.guard for member in members)
    assert {member.name for member in members} == {"auto"}
    assert [member.train.epochs for member in members] == [50, 150, 15, 15]
    assert members[0].data.source == f"{folder}/x.parquet"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("fusion.classifiers=[cpx]", "Setting fusion.classifiers has 'cpx', which is no method to fuse"),
        ("fusion.classifiers=[zero_shot]", "'zero_shot', which is no method to fuse"),
        ("fusion.classifiers=[fusion]", "'fusion', which is no method to fuse"),
        ("fusion.classifiers=['']", "'', which is no method to fuse"),
        ("fusion.classifiers=['cpl cpl.alpah=1']", "cpl.alpah"),
        ("fusion.classifiers=[]", "leaves nothing to fuse"),
        ("fusion.over=[nowhere]", "'nowhere' is not a finished run"),
        ("transduct.over=[x]", "Setting transduct.over belongs to method=transduct"),
        ("data.paradigm=ssl", "data.paradigm='ssl'"),
    ],
)
def test_mistakes_are_a_sentence(folder: Path, override: str, sentence: str) -> None:
    quick = [] if override.startswith("fusion.classifiers") else ["fusion.classifiers=[]"]
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        pipeline.run(job(folder, *quick, override))
