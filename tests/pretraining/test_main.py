"""``python -m pretraining`` finds the job of a file."""

import pytest

from pretraining.__main__ import MODELS, main


@pytest.mark.parametrize("arguments", [[], ["jobs/cpl.yaml"]])
def test_another_job_file_is_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "clip.yaml, diffusion.yaml, captioner.yaml" in said


@pytest.mark.parametrize("model", MODELS)
def test_every_job_is_found(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"pretraining/jobs/{model}.yaml", "no_such_key=1"]) == 2
    assert "no_such_key" in capsys.readouterr().err
