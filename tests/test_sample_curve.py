"""The curve over the number of synthetic images: which runs it asks for, and what it makes of them."""

import json

import pytest

from raydapt.errors import UserError
from raydapt.methods.air.settings import AirSettings
from raydapt.methods.air.spec import has_a_part
from raydapt.methods.configuration import config_from_tree
from raydapt.run import pipeline
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from raydapt.verbs import sample_curve


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Stands in for the runs, whose accuracy is then known; collects their settings."""
    configs: list[Config] = []

    def run(config):
        configs.append(config)
        count = config.synthesis.samples_per_class if has_a_part(config.own["air"]) else 0
        record = Run(config.runs, f"run-{count}")
        metrics = {
            "paradigm": "ul",
            "zero_shot": {"top1": 30.0},
            "adapted": {"top1": 30.0 + count},
            "pseudo_labels": {"accuracy": None},
            "label_free_score": 0.5,
        }
        record.write_json("metrics.json", metrics)
        return record

    monkeypatch.setattr(pipeline, "run", run)
    return configs


def job(tmp_path, **settings):
    return config_from_tree({"method": "air", "runs": str(tmp_path), **settings})


def test_the_largest_count_is_made_first_and_points_come_in_order(asked, tmp_path):
    record, points = sample_curve.sample_curve(job(tmp_path), [5, 0, 20])
    assert [c.synthesis.samples_per_class for c in asked[:2]] == [20, 5]
    assert not has_a_part(asked[2].of(AirSettings))
    assert [point["samples_per_class"] for point in points] == [0, 5, 20]
    assert [point["adapted"] for point in points] == [30.0, 35.0, 50.0]
    assert json.loads(record.read_bytes("curve.json")) == points
    assert record.read_bytes("curve.svg").lstrip().startswith(b"<?xml")
    assert "50.00" in sample_curve.format_points(points)


def test_everything_but_the_count_is_as_in_the_job(asked, tmp_path):
    sample_curve.sample_curve(job(tmp_path, name="curve", air={"nearest": 3}), [10])
    assert (asked[0].name, asked[0].of(AirSettings).nearest, asked[0].synthesis.samples_per_class) == (
        "curve-10",
        3,
        10,
    )


@pytest.mark.parametrize(("settings", "counts"), [({"method": "cpl"}, [5]), ({}, []), ({}, [5, -1])])
def test_a_mistake_is_one_sentence(asked, tmp_path, settings, counts):
    with pytest.raises(UserError):
        sample_curve.sample_curve(job(tmp_path, **settings), counts)
