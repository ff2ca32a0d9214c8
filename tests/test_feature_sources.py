"""Whole runs on features in place of images: every method, every refusal, and the same answers as from images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch

from raydapt.artefacts.answers import load_answers
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.guard import judge
from raydapt.methods.transduct.fit import fit
from raydapt.models.clip import load_clip
from raydapt.models.frozen import load_frozen
from raydapt.run import pipeline
from raydapt.run.guarding import verdict_of
from raydapt.run.plan import make_plan
from raydapt.run.prediction import predict
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from raydapt.verbs.export import export
from tests.data.features import unit, write

NAMES, WIDTH = ["cat", "dog", "sea lake"], 16
WORDINGS = ["mean of templates", "a photo of a {}.", "a drawing of a {}."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 features around three directions, and class embeddings that are turned away from these."""
    folder, generator = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    centre_CD = unit(generator.standard_normal((3, WIDTH)))
    class_N = np.arange(180) % 3
    feature_ND = unit(centre_CD[class_N] + 0.2 * generator.standard_normal((180, WIDTH)))
    labels = [NAMES[c].replace(" ", "_") for c in class_N]
    splits = np.where(np.arange(180) % 9 < 6, "train", "test").tolist()
    write(folder / "x.parquet", feature_ND.astype(np.float16), label=labels, split=splits)
    rows = [(name, wording) for wording in WORDINGS for name in NAMES]
    for name, seed in (("classes", 1), ("others", 2)):
        noise_MD = np.random.default_rng(seed).standard_normal((9, WIDTH))
        class_MD = unit(np.tile(centre_CD, (3, 1)) + 0.25 * noise_MD).astype(np.float32)
        columns = {"name": [row[0] for row in rows], "template": [row[1] for row in rows]}
        write(folder / f"{name}.parquet", class_MD, **columns)
    return folder


def job(folder: Path, method: str, *overrides: str) -> Config:
    places = [f"runs={folder}/runs", f"store={folder}/store", "ray.progress=false", "features.rows_per_part=50"]
    given = [f"data.source={folder}/x.parquet", f"data.class_features={folder}/classes.parquet"]
    return load_config(None, [f"method={method}", *places, *given, *overrides])


QUICK = ["train.epochs=2", "train.batch_size=32"]
JOBS = {
    "zero_shot": [],
    "ensemble": [],
    "wca": ["fair.crops=0"],
    "fpl": QUICK,
    "grip": [*QUICK, "grip.rounds=2"],
    "cpl": [*QUICK, "cpl.rounds=2"],
    "air": [*QUICK, "air.fusion_weight=0", "air.synthetic_weight=0", "cpl.rounds=2"],
    "fair": QUICK,
    "latteclip": [*QUICK, "latteclip.tune=residual", "latteclip.use_image_caption=false",
                  "latteclip.use_batch_caption=false"],
    "coreg": ["train.epochs=3", "train.batch_size=32", "coreg.student=linear", "coreg.warmup_epochs=1",
              "coreg.queue=64", "coreg.start_contrast=0"],
    "transduct": [],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", JOBS)
def test_every_method_learns_from_features_alone(folder: Path, method: str) -> None:
    started = ray.is_initialized()
    record = pipeline.run(job(folder, method, *JOBS[method]))
    assert ray.is_initialized() == started
    metrics = json.loads(record.read_bytes("metrics.json"))
    table = pq.read_table(folder / "x.parquet").to_pydict()
    tests = [i for i, split in enumerate(table["split"]) if split == "test"]
    feature_TD = unit(np.array([table["feature"][i] for i in tests], dtype=np.float64))
    class_CD = unit(np.array(pq.read_table(folder / "classes.parquet")["feature"].to_pylist())[:3])
    truth_T = [NAMES.index(table["label"][i].replace("_", " ")) for i in tests]
    assert metrics["zero_shot"]["top1"] == pytest.approx(100 * np.mean((feature_TD @ class_CD.T).argmax(1) == truth_T))
    assert metrics["adapted"]["top1"] > 60
    assert metrics["evaluation"]["images"] == len(tests) == 60
    assert any("no pictures" in note for note in metrics["notes"])
    assert "no pictures" in record.read_bytes("report.html").decode()
    assert pq.read_table(Path(record.path) / "gallery.parquet").num_rows == 0


@pytest.mark.slow
@pytest.mark.parametrize("paradigm", ["ssl", "trzsl"])
@pytest.mark.parametrize("method", ["fpl", "cpl"])
def test_labels_help_as_with_images(folder: Path, method: str, paradigm: str) -> None:
    record = pipeline.run(job(folder, method, *JOBS[method], f"data.paradigm={paradigm}"))
    assert json.loads(record.read_bytes("metrics.json"))["adapted"]["top1"] > 60


@pytest.mark.slow
def test_the_named_model_words_the_classes_and_text_prompts_are_learned(folder: Path) -> None:
    clip = load_clip("mini")
    class_CD = clip.class_embeddings(NAMES, ["a photo of a {}."]).numpy()
    noise_ND = np.random.default_rng(3).standard_normal((90, clip.embed_dim))
    feature_ND = unit(class_CD[np.arange(90) % 3] + 0.05 * noise_ND).astype(np.float32)
    write(folder / "mini.parquet", feature_ND, label=[NAMES[i % 3] for i in range(90)])
    own = [f"data.source={folder}/mini.parquet", "data.class_features=null", "model.clip=mini", *QUICK]
    names = [f"data.class_names={json.dumps(NAMES)}", "data.templates=['a photo of a {}.']"]
    metrics = json.loads(pipeline.run(job(folder, "fpl", *own, *names)).read_bytes("metrics.json"))
    assert metrics["prompt"] == "text"
    right = (feature_ND @ class_CD.T).argmax(1) == np.arange(90) % 3
    assert metrics["zero_shot"]["top1"] == pytest.approx(100 * right.mean())
    with pytest.raises(UserError, match=r"holds features of width 16, and model.clip='mini' makes"):
        make_plan(job(folder, "fpl", "data.class_features=null", *names))


REFUSED = [
    ("cpl", ["model.prompt=visual"], "model.prompt=visual learns from images"),
    ("grip", ["model.prompt=both"], "model.prompt=both learns from images"),
    ("fpl", ["model.prompt=text"], "needs a text tower"),
    ("fair", ["fair.layer_norms=true"], "changes the image tower"),
    ("fair", ["fair.crops=4"], "fair.crops=4 cuts images"),
    ("fair", ["fair.descriptions=DESCRIPTIONS"], "fair.descriptions needs a text tower"),
    ("wca", [], "cuts images"),
    ("latteclip", ["latteclip.use_image_caption=true"], "describe images"),
    ("latteclip", ["latteclip.use_image_caption=false", "latteclip.use_batch_caption=false"], "set latteclip.tune="),
    ("latteclip", ["latteclip.use_image_caption=false", "latteclip.use_batch_caption=false",
                   "latteclip.tune=text_prompt"], "needs a text tower"),
    ("air", [], "encodes synthetic images"),
    ("coreg", [], "set coreg.student=linear or mlp"),
    ("cpl", ["synthesis.held_out=5"], "synthesis.held_out=5"),
    ("cpl", ["data.source=digits"], "holds images"),
    ("cpl", ["data.class_features=null"], "name the model that made them"),
    ("cpl", ["data.class_names=[cat, dog, cow]"], "no vector for 1 of 3 classes"),
    ("cpl", ["data.templates=['the {}']"], "under the wording 'the'"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "overrides", "words"), REFUSED)
def test_what_features_are_not_enough_for_is_one_sentence(
    folder: Path, method: str, overrides: list[str], words: str
) -> None:
    (folder / "texts.yaml").write_text("{cat: [a], dog: [b], sea lake: [c]}")
    overrides = [item.replace("DESCRIPTIONS", f"{folder}/texts.yaml") for item in overrides]
    with pytest.raises(UserError, match=words) as caught:
        make_plan(job(folder, method, *overrides))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_features_of_another_width_are_refused(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "narrow.parquet", np.eye(3, 8, dtype=np.float32), name=NAMES)
    with pytest.raises(UserError, match=r"vectors of width 8, and data.source=.* of width 16"):
        make_plan(job(folder, "cpl", f"data.class_features={tmp_path}/narrow.parquet"))


def test_a_run_is_named_by_the_content_of_its_class_embeddings(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "moved.parquet").write_bytes((folder / "classes.parquet").read_bytes())
    same, moved, other = (
        make_plan(job(folder, "coreg", *JOBS["coreg"], f"data.class_features={path}"))
        for path in (folder / "classes.parquet", tmp_path / "moved.parquet", folder / "others.parquet")
    )
    assert same.fingerprint == moved.fingerprint != other.fingerprint
    recipes = [{spec.name: spec.recipe.fingerprint for spec in plan.artefacts} for plan in (same, other)]
    assert recipes[0]["features"] == recipes[1]["features"]
    assert recipes[0]["partial_labels"] != recipes[1]["partial_labels"]


def test_a_finished_run_predicts_other_features_and_exports_no_tower(folder: Path, tmp_path: Path) -> None:
    record = pipeline.run(job(folder, "fpl", *JOBS["fpl"]))
    table = pq.read_table(folder / "x.parquet").slice(30, 12).select(["feature", "label"])
    pq.write_table(table, tmp_path / "new.parquet")
    found = pq.read_table(predict(record.path, [f"data.source={tmp_path}/new.parquet"])).to_pydict()
    whole = pq.read_table(Path(record.path) / "predictions.parquet").to_pydict()
    known = dict(zip(whole["id"], whole["predicted"], strict=True))
    shared = [(said, known[id_]) for id_, said in zip(found["id"], found["predicted"], strict=True) if id_ in known]
    assert len(found["id"]) == 12
    assert len(shared) == 3
    assert all(said == before for said, before in shared)
    with pytest.raises(UserError, match="no image tower to export"):
        export(record.path, str(tmp_path / "exported"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_images_and_their_exported_features_get_the_same_answers(tmp_path: Path) -> None:
    places = [f"runs={tmp_path}/runs", f"store={tmp_path}/store", "ray.progress=false", "data.limit=300"]
    images = ["data.source=digits"]
    files = pipeline.features(load_config(None, [*places, *images]), output=str(tmp_path / "pair"))
    given = [f"data.source={files[0]}", f"data.class_features={files[1]}"]
    thresholds = ["cpl.alpha=0.6", "cpl.beta=0.9", "cpl.rounds=2", "model.prompt=residual"]
    for method, own in {
        "zero_shot": [],
        "ensemble": [],
        "transduct": [],
        "cpl": [*QUICK, *thresholds],
        "fair": [*QUICK, "fair.layer_norms=false", "fair.crops=0", "fair.anchor_text=names"],
    }.items():
        one, two = (
            pipeline.run(load_config(None, [f"method={method}", *places, *source, *own])) for source in (images, given)
        )
        assert _answers(one) == _answers(two), method


def _answers(record: Run) -> dict[str, str]:
    table = pq.read_table(Path(record.path) / "predictions.parquet").to_pydict()
    return dict(zip(table["id"], table["predicted"], strict=True))


def test_an_unknown_class_prior_leaves_a_run_its_name_and_a_stated_one_does_not(folder: Path) -> None:
    unknown, before = (make_plan(job(folder, "cpl", *given)) for given in (["data.class_prior=unknown"], []))
    assert unknown.fingerprint == before.fingerprint
    assert make_plan(job(folder, "cpl", "data.class_prior=uniform")).fingerprint != before.fingerprint
    with pytest.raises(UserError, match="did you mean 'cat'"):
        make_plan(job(folder, "cpl", "data.class_prior={cats: common}"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grip", "coreg", "transduct"])
def test_a_stated_class_prior_moves_the_answers_and_a_contradiction_is_said(folder: Path, method: str) -> None:
    settings = [setting for setting in JOBS[method] if not setting.startswith("train.epochs") or method == "coreg"]
    runs = [
        pipeline.run(job(folder, method, *settings, "train.max_steps_per_round=5", *given))
        for given in ([], ["data.class_prior={cat: 90, dog: 1, sea lake: 9}"])
    ]
    shares = [pq.read_table(run.file("predictions.parquet"))["predicted"].to_pylist().count("cat") for run in runs]
    assert shares[1] >= shares[0]
    metrics = json.loads(runs[1].read_bytes("metrics.json"))
    assert metrics["scores"]["prior_match"] is not None
    if shares[1] < 30:  # of 60: far from the 90 % that were stated
        assert any("contradict data.class_prior" in note for note in metrics["notes"])
    assert not any("class_prior" in note for note in json.loads(runs[0].read_bytes("metrics.json"))["notes"])


@pytest.mark.slow
def test_transduction_over_other_runs_starts_from_their_mean_answer(folder: Path) -> None:
    teachers = [pipeline.run(job(folder, method, *JOBS[method], "seed=5")) for method in ("fpl", "fair")]
    over = f"transduct.over=[{', '.join(run.path for run in teachers)}]"
    record = pipeline.run(job(folder, "transduct", over))
    told = json.loads(record.read_bytes("metrics.json"))["transduct"]
    plan = make_plan(job(folder, "transduct", over))
    artefacts = [plan.store.artefact_of(spec.recipe) for spec in plan.artefacts if spec.kind == "answers"]
    answers = [load_answers(artefact) for artefact in artefacts]
    assert len(answers) == 2
    table = pq.read_table(folder / "x.parquet").to_pydict()
    train = [i for i, split in enumerate(table["split"]) if split == "train"]
    truth = torch.tensor([NAMES.index(table["label"][i].replace("_", " ")) for i in train])
    mean_NC = ((answers[0] + answers[1]) / 2)[train]
    assert told["over"]["top1"] == pytest.approx(100 * float((mean_NC.argmax(1) == truth).double().mean()))
    feature_ND = torch.from_numpy(unit(np.array([table["feature"][i] for i in train], dtype=np.float64))).float()
    clip = load_frozen(plan.config.data, plan.config.model)
    text_CD = clip.class_embeddings(NAMES, plan.classes.templates)
    fitted = fit(feature_ND, text_CD, 100.0, base=lambda rows: mean_NC[rows].clamp_min(1e-6).log())
    expected = [NAMES[c] for c in fitted.probabilities().argmax(1).tolist()]
    assert pq.read_table(record.file("transductive.parquet"))["predicted"].to_pylist() == expected
    assert make_plan(job(folder, "transduct")).fingerprint != plan.fingerprint
    assert Path(predict(record.path, [])).exists()
    with pytest.raises(UserError, match=r"Setting transduct\.over: run .* tells 3 classes apart"):
        make_plan(job(folder, "transduct", over, "data.class_names=[cat, dog]"))


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("coreg", [], True),
        ("coreg", ["guard=false"], False),  # as published
        ("coreg", ["predict.with_frozen=false"], False),
        ("fair", [], False),
        ("fair", ["guard=false", "predict.with_frozen=true"], True),
    ],
)
def test_students_of_features_answer_together_with_zero_shot(
    folder: Path, method: str, given: list[str], expected: bool
) -> None:
    config = make_plan(job(folder, method, *JOBS[method], *given)).config
    assert config.predict.with_frozen is expected
    kept = judge(torch.tensor([[0.6, 0.4]]), torch.tensor([[0.6, 0.4]]), torch.ones(1, 2))
    kept = replace(kept, verdict="adapted")
    assert verdict_of(config, kept, earlier_round=False) == ("mean of both" if expected else "adapted")
