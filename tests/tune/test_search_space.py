import pytest

from raydapt.errors import UserError
from raydapt.methods.configuration import config_from_tree
from raydapt.settings.config import Config
from raydapt.tune.search_space import check_ends, draw_trials, parse_space, trial_config

SPACE = {
    "cpl.alpha": {"uniform": [0.5, 0.95]},
    "train.learning_rate": {"loguniform": [0.001, 1.0]},
    "cpl.rounds": {"integer": [2, 5]},
    "model.text_prompt_tokens": {"choice": [4, 16]},
}


def job(space=SPACE, **settings) -> Config:
    return config_from_tree({"space": space, **settings})


def test_random_trials_lie_in_the_space_are_all_different_and_begin_with_the_jobs_own():
    config = job(tune={"trials": 30})
    trials = draw_trials(config, parse_space(config))
    assert trials[0] == {}
    assert len(trials) == len({repr(sorted(t.items())) for t in trials}) == 30
    for trial in trials[1:]:
        assert 0.5 <= trial["cpl.alpha"] <= 0.95
        assert 0.001 <= trial["train.learning_rate"] <= 1
        assert trial["cpl.rounds"] in range(2, 6)
        assert trial["model.text_prompt_tokens"] in (4, 16)
    assert {trial["cpl.rounds"] for trial in trials[1:]} == {2, 3, 4, 5}
    assert min(trial["train.learning_rate"] for trial in trials[1:]) < 0.02


def test_the_same_seed_draws_the_same_trials_and_more_of_them_begin_alike():
    def drawn(**tune):
        config = job(tune=tune)
        return draw_trials(config, parse_space(config))

    assert drawn(trials=8) == drawn(trials=20)[:8]
    assert drawn(trials=8) != drawn(trials=8, seed=1)


def test_a_small_space_gives_each_of_its_points_once():
    config = job({"cpl.rounds": {"choice": [2, 3, 10]}}, tune={"trials": 24})
    trials = draw_trials(config, parse_space(config))
    # The job's own ten rounds are the first trial, not a further one.
    assert sorted(trial.get("cpl.rounds", 10) for trial in trials) == [2, 3, 10]


def test_a_grid_is_the_product_of_its_lists():
    space = {"cpl.rounds": {"choice": [2, 3]}, "train.learning_rate": {"choice": [0.1, 0.2, 0.3]}}
    config = job(space, tune={"search": "grid", "trials": 2})
    assert len(draw_trials(config, parse_space(config))) == 1 + 6


def test_what_another_method_uses_is_passed_over():
    space = SPACE | {"fair.top_k": {"choice": [1, 2]}, "air.nearest": {"integer": [1, 9]}}
    assert set(parse_space(job(space))) == set(SPACE)
    grip = {"cpl.alpha", "cpl.rounds", "fair.top_k", "air.nearest"}
    assert set(parse_space(job(space, method="grip"))) == set(space) - grip
    assert set(parse_space(job(space, method="air"))) == set(space) - {"fair.top_k"}
    assert set(parse_space(job(space | {"method": {"choice": ["cpl", "fair"]}}))) == {*space, "method"} - {
        "air.nearest"
    }


def test_a_trial_is_the_job_with_some_settings_of_its_own():
    config = job(seed=3)
    trial = trial_config(config, {"cpl.alpha": 0.7, "train.epochs": 2})
    assert (trial.seed, trial.own["cpl"].alpha, trial.train.epochs, trial.own["cpl"].rounds) == (
        3,
        0.7,
        2,
        config.own["cpl"].rounds,
    )


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, ["space={}", "empty"]),
        ({"cpl.alhpa": {"uniform": [0, 1]}}, ["'cpl.alhpa'", "did you mean 'cpl.alpha'"]),
        ({"alpha": {"uniform": [0, 1]}}, ["'alpha'"]),
        ({"store": {"choice": ["a", "b"]}}, ["'store'"]),
        ({"data.source": {"choice": ["a", "b"]}}, ["'data.source'"]),
        ({"fair.top_k": {"choice": [1, 2]}}, ["method='cpl'", "fair.top_k"]),
        ({"cpl.alpha": [0.5, 0.9]}, ["space.cpl.alpha=[0.5, 0.9]", "uniform"]),
        ({"cpl.alpha": {"uniform": [0.9, 0.5]}}, ["space.cpl.alpha"]),
        ({"cpl.alpha": {"uniform": [0.5, "x"]}}, ["space.cpl.alpha"]),
        ({"cpl.alpha": {"normal": [0.5, 0.9]}}, ["space.cpl.alpha", "choice"]),
        ({"cpl.alpha": {"choice": []}}, ["space.cpl.alpha"]),
        ({"train.learning_rate": {"loguniform": [0, 1]}}, ["space.train.learning_rate", "above 0"]),
    ],
)
def test_a_wrong_space_is_one_sentence(space, words):
    with pytest.raises(UserError) as caught:
        parse_space(job(space))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_values_that_a_setting_does_not_take_are_told_before_any_trial():
    config = job({"cpl.alpha": {"uniform": [0.5, 3.0]}}, tune={"trials": 20})
    with pytest.raises(UserError, match=r"cpl\.alpha="):
        draw_trials(config, parse_space(config))
    with pytest.raises(UserError, match=r"cpl\.alpha=3"):
        check_ends(config, parse_space(config))


def test_a_grid_of_a_range_is_refused():
    config = job(tune={"search": "grid"})
    with pytest.raises(UserError, match=r"space\.cpl\.alpha"):
        draw_trials(config, parse_space(config))


@pytest.mark.parametrize(
    ("method", "used", "passed_over"),
    [
        ("wca", "fair.crops", "cpl.alpha"),
        ("fair", "fair.crops", "model.prompt"),
        ("coreg", "coreg.mixup", "model.prompt"),
        ("coreg", "coreg.mixup", "model.text_prompt_tokens"),
        ("cpl", "cpl.alpha", "synthesis.steps"),
        ("air", "cpl.alpha", "grip.rounds"),
        ("air", "synthesis.steps", "fair.crops"),
        ("latteclip", "latteclip.alpha", "model.visual_prompt_tokens"),
    ],
)
def test_a_space_holds_what_the_method_uses_and_nothing_else(method, used, passed_over):
    values = {"model.prompt": ["text", "visual"], "cpl.alpha": [0.5, 0.7], "latteclip.alpha": [0.01, 0.02]}
    space = {key: {"choice": values.get(key, [3, 4])} for key in (used, passed_over)}
    assert list(parse_space(job(space, method=method))) == [used]


def test_air_searches_over_its_bases_with_the_settings_of_each():
    space = {"air.base": {"choice": ["cpl", "grip"]}, "grip.rounds": {"choice": [2, 3]}, "fair.crops": {"choice": [1]}}
    sweep = job(space, method="air")
    assert list(parse_space(sweep)) == ["air.base", "grip.rounds"]
    trial = trial_config(sweep, {"air.base": "grip", "grip.rounds": 3})
    assert set(trial.own) == {"air", "grip"}
    assert trial.own["grip"].rounds == 3
