"""Trials in this process: no label is read, one failure is one failure, what is done is found again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.scores import agreement
from raydapt.run import known_labels, pipeline
from raydapt.settings.config import Config
from raydapt.settings.tree import as_tree
from raydapt.tune import sweep as sweep_
from raydapt.tune import trials as trials_
from raydapt.tune.search_space import draw_trials, parse_space
from raydapt.tune.selection import Trial, ranking
from raydapt.tune.trials import Sweep, read_trial, run_trial
from raydapt.verbs.review import images_of_review, open_first, open_review, results_of
from tests.tune.cases import digits, job


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch):
    """Trials one after another in this process, where Ray Tune would have them in actors."""

    def run_trials(sweep, drawn, space, *, show):
        for number, settings in enumerate(drawn):
            try:
                run_trial(sweep, f"{number:03d}", settings, lambda scores: None)
            except (UserError, RuntimeError):
                continue
        return [read_trial(sweep.record(f"{number:03d}")) for number in range(len(drawn))]

    monkeypatch.setattr(sweep_, "run_trials", run_trials)
    monkeypatch.setattr(sweep_, "ensure_ray", lambda settings: None)
    monkeypatch.setattr(sweep_, "require_shared", lambda url, setting: None)


def choice(config: Config) -> dict:
    sweep_.tune(config)
    (folder,) = Path(config.runs).glob("tune-*")
    return sweep_.Run(config.runs, folder.name).read_json("tune.json")


def scores_of(result: dict) -> list[dict]:
    return [trial["scores"] for trial in result["trials"]]


@pytest.mark.slow
def test_no_label_is_read_and_other_labels_or_none_give_the_same_choice(tmp_path, monkeypatch):
    def refuse(artefact, source=None):
        raise AssertionError("a label was read")

    monkeypatch.setattr(known_labels, "load_labels", refuse)
    results = []
    for labels in ("true", "turned", "absent"):
        folder = tmp_path / labels
        folder.mkdir()
        results.append(choice(job(folder, digits(folder / "digits.parquet", labels))))
    assert scores_of(results[0]) == scores_of(results[1]) == scores_of(results[2])
    assert results[0]["chosen"] == results[1]["chosen"] == results[2]["chosen"]
    assert results[0]["study"] is None
    chosen = next((tmp_path / "true" / "runs").glob("tune-*/chosen.yaml"))
    assert load_config(chosen).method == ("zero_shot" if results[0]["chosen"] == "zero-shot" else "cpl")
    assert (chosen.parent / "report.html").exists()


@pytest.mark.slow
def test_only_the_study_reads_labels_and_it_makes_the_same_choice(tmp_path):
    source = digits(tmp_path / "digits.parquet")
    blind, study = (
        choice(job(tmp_path, source)),
        choice(job(tmp_path, source, runs=str(tmp_path / "o"), tune={"oracle": True})),
    )
    assert study["chosen"] == blind["chosen"]
    assert scores_of(study) == scores_of(blind)
    assert study["study"]["oracle"] == max(trial["accuracy"] for trial in study["trials"]) > 20
    assert all(trial["accuracy"] is None for trial in blind["trials"])


@pytest.mark.slow
def test_the_model_as_it_is_stands_among_the_candidates_and_may_be_chosen(tmp_path, monkeypatch):
    config = job(tmp_path, digits(tmp_path / "digits.parquet"))
    real = sweep_.ranking
    monkeypatch.setattr(
        sweep_, "ranking", lambda trials: sorted(real(trials), key=lambda pair: pair[0].number != "zero-shot")
    )
    told = sweep_.tune(config)
    (folder,) = Path(config.runs).glob("tune-*")
    last = json.loads((folder / "tune.json").read_text())["trials"][-1]
    assert (last["number"], last["settings"], last["state"]) == ("zero-shot", {"method": "zero_shot"}, "finished")
    assert last["scores"].keys() >= {"agreement", "cluster_agreement", "consensus"}
    assert "4 of 4 trials finished" in told
    assert "Chosen without labels: zero-shot: method=zero_shot" in told
    assert load_config(folder / "chosen.yaml").method == "zero_shot"
    assert "method=zero_shot" in (folder / "report.html").read_text()
    population = open_review([str(folder)], choose=True).population
    assert population.names == ("zero-shot", *(f"trial {number:03d}" for number in range(4)))


@pytest.mark.slow
def test_a_failing_trial_is_one_sentence_and_the_others_go_on(tmp_path, monkeypatch):
    config, build = job(tmp_path, digits(tmp_path / "digits.parquet")), pipeline.final_method

    def out_of_memory(job_, state):
        if job_.run.name == "001":
            raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")
        return build(job_, state)

    monkeypatch.setattr(pipeline, "final_method", out_of_memory)
    result = choice(config)
    assert [trial["state"] for trial in result["trials"]] == ["finished", "failed", "finished", "finished", "finished"]
    assert result["trials"][1]["error"] == "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB"
    report = next(Path(config.runs).glob("tune-*/report.html")).read_text()
    assert "CUDA out of memory" in report


def test_consensus_is_told_of_the_images_that_all_trials_answered(tmp_path):
    config = job(tmp_path, digits(tmp_path / "digits.parquet"))
    sweep = Sweep(config=config, folder=str(tmp_path / "sweep"), held_out={}, first_held_out=0)
    answers = {"000": ([0, 2, 4, 6], [0, 1, 2, 2]), "001": ([0, 2, 3, 4], [0, 1, 9, 2]), "002": ([0, 2, 4], [1, 1, 2])}
    for number, (index, classes) in answers.items():
        saved = save({"index_E": torch.tensor(index), "class_E": torch.tensor(classes)})
        sweep.record(number).write_bytes(trials_.ANSWERS, saved)
    trials = [Trial(number=number, settings={}, state="finished") for number in answers]
    told = sweep_._with_consensus(sweep, 10, [*trials, Trial(number="003", settings={}, state="failed")])
    voted = torch.tensor([0, 1, 2])  # of images 0, 2 and 4
    third = agreement(torch.tensor([1, 1, 2]), voted, 10)
    assert [trial.scores.get("consensus") for trial in told] == [1.0, 1.0, pytest.approx(third), None]


def test_all_trials_failing_is_one_sentence(tmp_path, monkeypatch):
    def broken(job_, state):
        raise UserError("Setting x=1 is out of order: mend it.")

    monkeypatch.setattr(pipeline, "final_method", broken)
    with pytest.raises(UserError, match=r"Not one of the 4 trials .* Setting x=1 is out of order") as caught:
        sweep_.tune(job(tmp_path, digits(tmp_path / "digits.parquet")))
    assert "\n" not in str(caught.value)


def test_a_trial_that_is_done_is_found_and_one_that_was_cut_goes_on(tmp_path, monkeypatch):
    config = job(tmp_path, digits(tmp_path / "digits.parquet"))
    sweep = Sweep(config=config, folder=str(tmp_path / "sweep"), held_out={}, first_held_out=0)
    settings = draw_trials(config, parse_space(config))[1]
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "final_method", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_trial(sweep, "001", settings, lambda scores: None)
    assert not sweep.record("001").exists("trial.json")
    told: list[dict] = []
    run_trial(sweep, "001", settings, told.append)
    assert len(told) == 1  # the learning was in its checkpoint: no round was learned, or told, again
    done = sweep.record("001").read_bytes("trial.json")
    run_trial(sweep, "001", settings, told.append)
    assert told[0] == told[1]
    assert sweep.record("001").read_bytes("trial.json") == done
    assert ranking([read_trial(sweep.record("001"))])[0][1] == 1.0


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    source = digits(tmp_path / "digits.parquet")
    config = job(tmp_path, source, name="mine", tune={"trials": 2})
    sweep_.tune(config)
    with pytest.raises(UserError, match="another name"):
        sweep_.tune(job(tmp_path, source, name="mine", tune={"trials": 3}))


@pytest.mark.slow
def test_a_person_chooses_among_the_trials(tmp_path):
    choice(job(tmp_path, digits(tmp_path / "digits.parquet")))
    (folder,) = (tmp_path / "runs").glob("tune-*")
    with pytest.raises(UserError, match="is a sweep: choose among its trials"):
        open_review([str(folder)])
    opened = open_review([str(folder)], choose=True)
    people = opened.population
    assert people.names[0] == "zero-shot"
    assert people.names[1:] == tuple(f"trial 00{n}" for n in range(4))
    for place, name in enumerate(people.names[1:], start=1):
        answers = load((folder / "trials" / name[6:] / "answers.safetensors").read_bytes())
        assert people.class_RN[place].tolist() == answers["class_E"].tolist()
    asked = opened.next_id("me")
    said = people.classes[people.class_RN[2, opened.session.index_of[asked]]]
    opened.give(asked, "class", said, "me")
    images = images_of_review(*open_first([str(folder)]), people)
    assert images.read(asked).startswith(b"\x89PNG")
    told = results_of([str(folder)], choose=True)
    chosen = json.loads((folder / "review-choice.json").read_text())["chosen"]
    assert chosen != "zero-shot"
    assert f"Run it: raydapt run {folder}/chosen-by-review.yaml" in told
    settings = next(
        t["settings"] for t in json.loads((folder / "tune.json").read_text())["trials"] if chosen[6:] == t["number"]
    )
    again = as_tree(load_config(folder / "chosen-by-review.yaml"))
    for key, value in settings.items():
        group, name = key.split(".")
        assert again[group][name] == value
