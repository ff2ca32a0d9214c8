import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from raydapt.errors import UserError
from raydapt.methods.configuration import config_from_tree, load_config
from raydapt.report.page import page_environment
from raydapt.train.scoring import MEAN
from raydapt.tune import study
from raydapt.tune.report import content
from raydapt.tune.selection import COMBINED, Trial, available, combined_scores, ranking, study_of
from raydapt.tune.sweep import _result, chosen_yaml

NAMES = ("agreement", "prior_match", "stability", "consensus")
DECISIVE = ("agreement", "prior_match", "consensus")


def trials(n=12, seed=0, *, oracle=True):
    generator = np.random.default_rng(seed)
    made = []
    for i in range(n):
        scores = dict(zip(NAMES, generator.random(4).round(2).tolist(), strict=True))
        accuracy = float(generator.random() * 100)
        settings = {} if i == 0 else {"cpl.alpha": 0.5 + i / 100, "synthesis.samples_per_class": int(5 * (i % 3 + 1))}
        made.append(
            Trial(
                number=f"{i:03d}",
                settings=settings,
                state="finished",
                scores=scores | {MEAN: (scores["agreement"] + scores["prior_match"]) / 2},
                seconds=1.0 + i,
                accuracy=accuracy if oracle else None,
                zero_shot=30.0 if oracle else None,
            )
        )
    return made


def test_combined_is_the_mean_of_ranks():
    score_TS = np.random.default_rng(0).random((9, 3)).round(1)  # with equal values
    for t in range(9):
        rank = [
            sum(score_TS[:, k] < score_TS[t, k]) + (sum(score_TS[:, k] == score_TS[t, k]) + 1) / 2 for k in range(3)
        ]
        assert combined_scores(score_TS)[t] == pytest.approx(np.mean(rank) / 9)


def test_a_score_that_one_trial_lacks_ranks_nobody():
    some = trials(4)
    some[2] = Trial(number="002", settings={}, state="finished", scores=dict(some[2].scores) | {"stability": None})
    assert available(some) == ["agreement", "prior_match", "consensus"]


def test_scores_that_are_told_only_move_no_trial():
    some = trials()
    turned = [replace(trial, scores=dict(trial.scores) | {"stability": -trial.scores["stability"]}) for trial in some]
    assert [trial.number for trial, _ in ranking(turned)] == [trial.number for trial, _ in ranking(some)]
    score_TS = np.array([[trial.scores[name] for name in DECISIVE] for trial in some])
    combined = {trial.number: score for trial, score in ranking(some)}
    assert [combined[trial.number] for trial in some] == pytest.approx(combined_scores(score_TS).tolist())


def test_only_finished_trials_are_ranked_and_failed_ones_do_not_hide_scores():
    some = [*trials(4), Trial(number="9", settings={}, state="failed", error="lost")]
    some.append(Trial(number="8", settings={}, state="stopped", scores={"agreement": 1.0}))
    assert available(some) == list(NAMES)
    assert {trial.number for trial, _ in ranking(some)} == {"000", "001", "002", "003"}
    assert [score for _, score in ranking(some)] == sorted((score for _, score in ranking(some)), reverse=True)


def test_the_choice_does_not_depend_on_accuracy():
    def chosen(some):
        return [trial.number for trial, _ in ranking(some)]

    assert chosen(trials()) == chosen(trials(oracle=False))
    assert study_of(ranking(trials(oracle=False)), list(NAMES)) is None


def test_correlation_and_regret_against_their_definitions():
    some = trials()
    ranked = ranking(some)
    found = study_of(ranked, list(NAMES))
    accuracy = np.array([trial.accuracy for trial, _ in ranked])
    combined = np.array([score for _, score in ranked])

    def ranks(values):
        return np.array([sum(values < v) + (sum(values == v) + 1) / 2 for v in values])

    expected = np.corrcoef(ranks(combined), ranks(accuracy))[0, 1]
    assert found.correlations[COMBINED] == pytest.approx(expected)
    assert found.regret == pytest.approx(max(accuracy) - ranked[0][0].accuracy)
    assert found.gain == pytest.approx(ranked[0][0].accuracy - some[0].accuracy)


def test_no_correlation_where_nothing_varies():
    same = [
        Trial(number=str(i), settings={}, state="finished", scores={"agreement": 0.5}, accuracy=i) for i in range(5)
    ]
    assert study_of(ranking(same), ["agreement"]).correlations == {"agreement": None, COMBINED: None}


def page(some, tmp_path, **settings):
    space = {"cpl.alpha": {"uniform": [0.5, 0.9]}, "synthesis.samples_per_class": {"choice": [5, 10, 15]}}
    config = config_from_tree({"space": space, **settings})
    result = _result(config, some)
    tree = yaml.safe_load(yaml.safe_dump({**{"tune": {"search": "random", "scheduler": "none"}}, "space": space}))
    chosen = chosen_yaml(config, ranking(some)[0][0])
    return page_environment().get_template("sweep.html.j2").render(content(result, tree, chosen)), result, chosen


def test_the_report_shows_ranking_curve_cost_and_the_chosen_job(tmp_path):
    text, _, _ = page(trials(), tmp_path)
    assert text.count("<picture>") == 3  # parallel coordinates, samples per class, cost
    assert "Regret" in text
    assert text.count("cpl.alpha=0.5") >= 10
    assert "raydapt run chosen.yaml" in text


def test_the_report_without_accuracies_and_with_hostile_words(tmp_path):
    some = [*trials(oracle=False), Trial(number="x", settings={}, state="failed", error="<script>alert(1)</script>")]
    text, _, _ = page(some, tmp_path)
    assert "<script>" not in text
    assert "Spearman" not in text


def test_the_chosen_job_is_a_job_file(tmp_path):
    _, _, chosen = page(trials(), tmp_path, seed=3, train={"epochs": 7})
    (tmp_path / "chosen.yaml").write_text(chosen)
    config, best = load_config(tmp_path / "chosen.yaml"), ranking(trials())[0][0]
    assert (config.seed, config.train.epochs, config.space) == (3, 7, {})
    assert config.own["cpl"].alpha == best.settings.get("cpl.alpha", "auto")
    assert len(chosen.splitlines()) < 15


def test_studies_side_by_side(tmp_path):
    for seed in (0, 1):
        _, result, _ = page(trials(seed=seed), tmp_path)
        (tmp_path / f"s{seed}").mkdir()
        (tmp_path / f"s{seed}" / "tune.json").write_text(json.dumps(result))
    lines = study.summary([str(tmp_path / "s0"), str(tmp_path / "s1")]).splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("| mean")
    with pytest.raises(UserError, match="not a finished sweep"):
        study.summary([str(tmp_path)])
