import json
from pathlib import Path

import pytest
import torch

from raydapt.artefacts.partial_labels import PartialLabels
from raydapt.methods.coreg.outcome import coreg_metrics
from raydapt.run.reporting import write_run_report
from raydapt.store.run_record import Run

CANDIDATE_AC = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
PROBABILITY_AC = torch.tensor(
    [[0.6, 0.1, 0.3], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0, 1, 0]]
)
STATE = {
    "memory.clean_2N": torch.tensor([[0.01, 0.97, 0.5, 1.0], [0.6, 0.6, 0.6, 0.6]]),
    "memory.answer_T2N": torch.tensor([[[0, 1, 2, 2], [0, 1, 0, 1]], [[-1] * 4, [-1] * 4]], dtype=torch.int16),
    "memory.trace_epoch_T": torch.tensor([3, 0]),
}


def metrics(class_A):
    labels = PartialLabels.of_block(CANDIDATE_AC, PROBABILITY_AC)
    return coreg_metrics(
        STATE,
        labels,
        torch.tensor([0, 0, 0, 0, 1, 1]),
        class_A,
        row_N=torch.arange(4),
        row_T=torch.tensor([4, 5]),
    )


def test_the_figures_of_a_hand_made_case():
    found = metrics(torch.tensor([0, 0, 2, -1, 0, 1]))
    annotation = found["annotation"]
    assert annotation["candidates"] == pytest.approx(7 / 4)
    assert annotation["candidate_counts"] == [0, 2, 1, 1]
    assert annotation["truth_missing"] == pytest.approx(100 / 3)  # image 1, of the three with a label
    assert annotation["zero_shot_train"] == pytest.approx(200 / 3)
    assert annotation["zero_shot_mean_train"] == pytest.approx(100 / 3)
    assert annotation["zero_shot_test"] == pytest.approx(50)
    assert annotation["zero_shot_mean_test"] == pytest.approx(100)
    assert found["division"]["believed"] == [50.0, 100.0]
    assert [sum(heights) for heights in found["division"]["histogram"]] == [4, 4]
    assert found["students"] == [
        {"epoch": 3, "first": pytest.approx(200 / 3), "second": pytest.approx(100 / 3), "disagreement": 50.0}
    ]


def test_without_labels_accuracies_are_null_and_the_rest_is_told():
    found = metrics(torch.full((6,), -1))
    assert found["annotation"]["truth_missing"] is None
    assert found["annotation"]["candidates"] > 0
    assert found["students"][0]["first"] is None
    assert found["students"][0]["disagreement"] == 50.0


def test_a_training_without_a_trace_of_the_students_has_a_report(tmp_path):
    run = Run(str(tmp_path), "run")
    run.make()
    own = metrics(torch.tensor([0, 0, 2, -1, 0, 1])) | {"students": []}
    top1 = {"top1": 50.0}
    run.write_json("metrics.json", {"method": "coreg", "zero_shot": top1, "adapted": top1, "coreg": own, "classes": 3})
    assert "Partial labels and students" in Path(write_run_report(run.folder)).read_text()


@pytest.mark.parametrize("labelled", [True, False])
def test_the_report_shows_annotation_students_and_deployment(tmp_path, labelled):
    run = Run(str(tmp_path), "run")
    run.make()
    own = metrics(torch.tensor([0, 0, 2, -1, 0, 1]) if labelled else torch.full((6,), -1))
    own["deployment"] = {"student": {"parameters": 414000, "bytes": 1656000, "images_per_s": 5000.0}}
    top1 = {"top1": 50.0 if labelled else None}
    run.write_json("metrics.json", {"method": "coreg", "zero_shot": top1, "adapted": top1, "coreg": own, "classes": 3})
    page = Path(write_run_report(run.folder)).read_text()
    assert "Partial labels and students" in page
    assert "414,000" in page
    assert "1.66" in page
    assert json.loads(run.read_bytes("metrics.json"))["coreg"]["annotation"]["candidate_counts"] == [0, 2, 1, 1]
