"""Fingerprints, run names and the form of a run's results are what they were (see ``make_golden.py``)."""

from pathlib import Path

import pytest

from tests.golden.golden import JOB_FILES, JOBS, PLANS, RUNS, facts_of, fingerprints_of, read_golden

GOLDEN = read_golden()


def test_every_job_file_and_every_entry_is_recorded() -> None:
    assert {path.stem for path in JOBS.glob("*.yaml")} == set(JOB_FILES)
    assert GOLDEN["plans"].keys() == PLANS.keys()
    assert GOLDEN["runs"].keys() == RUNS.keys()


@pytest.mark.parametrize("name", PLANS)
def test_fingerprints_are_what_they_were(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # they depend on no path
    assert fingerprints_of(name) == GOLDEN["plans"][name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("method", RUNS)
def test_a_tiny_run_has_the_results_that_it_had(method: str, folder: Path) -> None:
    facts, golden = facts_of(method, folder), GOLDEN["runs"][method]
    assert facts["files"] == golden["files"]
    assert facts["metrics"] == golden["metrics"]
    assert facts["checkpoint"] == golden["checkpoint"]
    assert facts["top1"] == golden["top1"]
