"""Features of a second encoder from a file: matched by id or by order, or refused in a sentence."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydapt.artefacts.features import load_features
from raydapt.artefacts.pixels import load_pixels
from raydapt.artefacts.second import KIND, load_network, load_second, network_bytes
from raydapt.data.decode import ImageSpec
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.run.making import artefacts_of, make_artefacts
from raydapt.run.plan import describe_plan, make_plan
from raydapt.run.prediction import predict
from raydapt.settings.config import Config
from raydapt.train.job import TrainingJob
from tests.data.features import unit, vectors, write
from tests.test_feature_sources import NAMES, WIDTH

ROWS = 60
ID_N = [f"image {i}" for i in range(ROWS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Features around three directions, class embeddings near these, in parts of 16 rows."""
    generator = np.random.default_rng(0)
    centre_CD = unit(generator.standard_normal((3, WIDTH)))
    class_N = np.arange(ROWS) % 3
    feature_ND = unit(centre_CD[class_N] + 0.2 * generator.standard_normal((ROWS, WIDTH))).astype(np.float32)
    write(tmp_path / "x.parquet", feature_ND, id=ID_N, label=[NAMES[c] for c in class_N])
    write(tmp_path / "classes.parquet", unit(centre_CD).astype(np.float32), name=NAMES)
    return tmp_path


def job(folder: Path, second: Path | str, *overrides: str, method: str = "transduct") -> Config:
    places = [f"runs={folder}/runs", f"store={folder}/store", "ray.progress=false", "features.rows_per_part=16"]
    given = [f"data.source={folder}/x.parquet", f"data.class_features={folder}/classes.parquet"]
    return load_config(None, [f"method={method}", *places, *given, f"model.second={second}", *overrides])


def second_of(config: Config) -> np.ndarray:
    return load_second(artefacts_of(make_artefacts(make_plan(config)))[KIND]).numpy()


def test_ids_find_their_features_in_any_order(folder: Path) -> None:
    value, order = vectors(ROWS, 5), np.random.default_rng(1).permutation(ROWS)
    write(folder / "s.parquet", value[order], id=[ID_N[i] for i in order])
    np.testing.assert_allclose(second_of(job(folder, folder / "s.parquet")), unit(value), atol=1e-6)


def test_arrays_go_by_order(folder: Path) -> None:
    value = vectors(ROWS, 5)
    np.save(folder / "s.npy", value)
    np.testing.assert_allclose(second_of(job(folder, folder / "s.npy")), unit(value), atol=1e-6)
    limited = second_of(job(folder, folder / "s.npy", "data.limit=20"))
    np.testing.assert_allclose(limited, unit(value)[:20], atol=1e-6)


def test_images_without_a_feature_are_zeros_within_the_allowed_share(folder: Path) -> None:
    value = vectors(ROWS, 5)
    value[7] = 0
    write(folder / "s.parquet", value[1:], id=ID_N[1:])
    with pytest.raises(UserError, match=r"2 of 60 second features cannot be used .*max_error_share"):
        second_of(job(folder, folder / "s.parquet"))
    found = second_of(job(folder, folder / "s.parquet", "data.max_error_share=0.05"))
    assert (found[[0, 7]] == 0).all()
    kept = [row for row in range(ROWS) if row not in (0, 7)]
    np.testing.assert_allclose(found[kept], unit(value[kept]), atol=1e-6)


def test_what_does_not_belong_to_the_images_is_refused(folder: Path) -> None:
    value = vectors(ROWS, 5)
    np.save(folder / "short.npy", value[:50])
    with pytest.raises(UserError, match=r"model\.second='.*short\.npy' has 50 features without ids, .* 60 images"):
        make_plan(job(folder, folder / "short.npy"))
    write(folder / "foreign.parquet", value, id=[f"other {i}" for i in range(ROWS)])
    with pytest.raises(UserError, match=r"has ids such as 'other 0', .* such as 'image 0'"):
        second_of(job(folder, folder / "foreign.parquet"))
    write(folder / "twice.parquet", value, id=[ID_N[0], *ID_N[:-1]])
    with pytest.raises(UserError, match=r"two different features with the id 'image 0'"):
        second_of(job(folder, folder / "twice.parquet"))
    (folder / "notes").mkdir()
    (folder / "notes" / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"model\.second='.*notes' holds no features"):
        make_plan(job(folder, folder / "notes"))
    with pytest.raises(UserError, match=r"model\.second='.*nowhere\.parquet' does not exist"):
        make_plan(job(folder, folder / "nowhere.parquet"))


def test_methods_that_do_not_read_it_refuse_it(folder: Path) -> None:
    np.save(folder / "s.npy", vectors(ROWS, 5))
    with pytest.raises(UserError, match=r"model\.second=.*zero_shot reads no second"):
        make_plan(job(folder, folder / "s.npy", method="zero_shot"))
    plan = make_plan(job(folder, "none", method="zero_shot"))
    assert KIND not in [spec.name for spec in plan.artefacts]


def test_another_file_is_another_run_and_none_is_the_old_one(folder: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        np.save(folder / f"{name}.npy", vectors(ROWS, 5 + seed, seed))
    names = {make_plan(job(folder, second)).run_name for second in ("none", folder / "a.npy", folder / "b.npy")}
    assert len(names) == 3


def test_a_run_reads_it_and_answers_new_images_without_it(folder: Path) -> None:
    """The training images have features in the order of the split, and `predict` needs no second file."""
    splits = np.where(np.arange(ROWS) % 3 == 0, "test", "train").tolist()
    centre_CD = unit(np.random.default_rng(0).standard_normal((3, WIDTH)))
    class_N = np.arange(ROWS) // 20
    feature_ND = unit(centre_CD[class_N] + 0.2 * vectors(ROWS, WIDTH)).astype(np.float32)
    write(folder / "x.parquet", feature_ND, id=ID_N, label=[NAMES[c] for c in class_N], split=splits)
    value = np.eye(3, 6)[class_N] + 0.1 * vectors(ROWS, 6)
    write(folder / "s.parquet", value.astype(np.float32), id=ID_N)
    config = job(folder, folder / "s.parquet", "guard=off")
    assert "second " in describe_plan(make_plan(config))
    record = pipeline.run(config)
    metrics = json.loads((Path(record.path) / "metrics.json").read_text())
    assert metrics["stages"]["second"]["rows"] == ROWS
    plan = make_plan(config)
    training = TrainingJob(
        config=plan.config, classes=plan.classes, run=record, artefacts=artefacts_of(make_artefacts(plan))
    )
    expected = unit(value)[[split == "train" for split in splits]]
    np.testing.assert_allclose(training.images().second_ND[:], expected, atol=1e-6)
    (folder / "s.parquet").unlink()
    assert Path(predict(record.path, [])).exists()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Thirty small pictures of two classes, of which one cannot be read."""
    generator = np.random.default_rng(0)
    for i in range(30):
        name = ("blue", "red")[i % 2]
        value = generator.integers(0, 90, (20, 24, 3)).astype(np.uint8)
        value[..., 2 if name == "blue" else 0] += 150
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(value).save(tmp_path / "photos" / name / f"{i:02}.png")
    (tmp_path / "photos" / "red" / "99.png").write_bytes(b"no picture")
    return tmp_path


def picture_job(folder: Path, second: str, *overrides: str) -> Config:
    places = [f"runs={folder}/runs", f"store={folder}/store", "ray.progress=false", "features.rows_per_part=8"]
    quick = ["second.steps=3", "second.batch_size=8", "second.size_px=16", "data.max_error_share=0.1"]
    given = [f"data.source={folder}/photos", f"model.second={second}"]
    return load_config(None, ["method=transduct", *places, *quick, *given, *overrides])


def test_a_model_encodes_the_images_in_their_order(pictures: Path) -> None:
    config = picture_job(pictures, "mini")
    made = artefacts_of(make_artefacts(make_plan(config)))
    first = load_features(made["features"])
    np.testing.assert_allclose(load_second(made[KIND]), first.feature_ND, atol=1e-6)
    assert not bool(load_second(made[KIND])[~first.valid_N].any())
    assert int((~first.valid_N).sum()) == 1


@pytest.mark.parametrize("second", ["mini", "self"])
def test_another_precision_makes_other_features_of_a_second_encoder(pictures: Path, second: str) -> None:
    made = {}
    for precision in ("auto", "fp32", "bf16"):
        specs = make_plan(picture_job(pictures, second, f"features.precision={precision}")).artefacts
        made[precision] = {spec.name: spec.recipe.fingerprint for spec in specs if spec.recipe is not None}
    assert made["auto"] == made["fp32"]
    assert made["bf16"][KIND] != made["fp32"][KIND]
    assert made["bf16"]["features"] != made["fp32"]["features"]
    assert made["bf16"].get("self_encoder") == made["fp32"].get("self_encoder")  # learning has its own precision


def test_self_learns_once_and_encodes_again_without_learning(pictures: Path) -> None:
    config = picture_job(pictures, "self")
    plan = make_plan(config)
    assert re.search(r"self_encoder \w+: to be made .*about 0\.0 minutes of one core", describe_plan(plan))
    made = make_artefacts(plan)
    second_ND, valid_N = load_second(made[KIND].artefact), load_features(made["features"].artefact).valid_N
    torch.testing.assert_close(second_ND[valid_N].norm(dim=1), torch.ones(int(valid_N.sum())))
    encoder = load_network(
        network_bytes(made["self_encoder"].artefact), ImageSpec(size_px=16), made["self_encoder"].artefact.fingerprint
    )
    pixels = load_pixels(made["second_pixels"].artefact, 1.0)
    torch.testing.assert_close(second_ND[valid_N], encoder.encode_image(pixels)[valid_N], rtol=1e-4, atol=1e-5)
    again = make_artefacts(plan)
    assert again[KIND].reused
    assert "self_encoder" not in again or again["self_encoder"].reused
    other = make_plan(picture_job(pictures, "self", "second.seed=1"))
    assert other.run_name != plan.run_name
    assert (
        make_plan(picture_job(pictures, "none", "second.seed=1")).run_name
        == make_plan(picture_job(pictures, "none")).run_name
    )


@pytest.mark.slow
def test_a_run_with_self_is_finished_and_applied(pictures: Path) -> None:
    record = pipeline.run(picture_job(pictures, "self"))
    metrics = json.loads((Path(record.path) / "metrics.json").read_text())
    assert {"second_pixels", "self_encoder", "second"} <= set(metrics["stages"])
    assert Path(predict(record.path, [f"data.source={pictures}/photos/red"])).exists()


def test_images_are_needed_to_look_at(folder: Path) -> None:
    for second in ("self", "mini"):
        with pytest.raises(UserError, match=rf"model\.second='{second}' looks at images, .* holds features"):
            make_plan(job(folder, second))


@pytest.mark.slow
@pytest.mark.ray
def test_ray_gives_the_same_features(pictures: Path, tmp_path: Path) -> None:
    found = []
    for address in ("auto", "local"):
        config = picture_job(pictures, "self", f"ray.address={address}", "ray.cpus=4", f"store={tmp_path}/{address}")
        found.append(load_second(make_artefacts(make_plan(config))[KIND].artefact))
    torch.testing.assert_close(*found)
