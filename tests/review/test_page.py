"""The page over HTTP: answers come back as intervals, and nobody but who has the address gets in."""

import io
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from raydapt.data.sources import read_part, resolve_source
from raydapt.errors import UserError
from raydapt.run.finished import open_run
from raydapt.settings.groups import DataSettings
from raydapt.store.run_record import Run
from raydapt.verbs.review import images_of_review, open_review, results_of, review
from raydapt.verbs.review_images import ReviewImages
from raydapt.verbs.review_population import population_of
from raydapt.verbs.review_server import make_app
from tests.review.runs import IMAGES, NAMES, make_run, spoil_zero_shot

TOKEN, BASE = "s3cret-token", "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    return Path(make_run(folder, "transduct").path)


@pytest.fixture
def run_folder(made: Path) -> Iterator[str]:
    yield str(made)
    for name in ("review.json", "review-design.parquet", "review-results.json"):
        (made / name).unlink(missing_ok=True)


def client_of(run_folder: str) -> TestClient:
    opened = open_review([run_folder])
    record, config = open_run(run_folder)
    app = make_app(opened, images_of_review(record, config, opened.population), TOKEN)
    return TestClient(app, base_url=BASE, headers={"Origin": BASE})


def post(client: TestClient, what: str, **body: object) -> dict[str, object]:
    response = client.post(f"/{TOKEN}/{what}", json={"reviewer": "me", **body})
    assert response.status_code == 200, response.text
    told: dict[str, object] = response.json()
    return told


def truth(run_folder: str, id_: str) -> str:
    record, _ = open_run(run_folder)
    people = population_of([open_run(run_folder)])
    assert record.exists("metrics.json")
    return NAMES[people.id_N.index(id_) % 3]


@pytest.mark.slow
def test_answers_become_intervals_and_stay(run_folder: str) -> None:
    client = client_of(run_folder)
    state = post(client, "next")
    assert (state["answered"], state["ready"], state["said"]) == (0, False, None)
    for _ in range(20):
        image = str(state["image"])
        state = post(client, "answer", id=image, kind="class", name=truth(run_folder, image))
        said = state["said"]
        assert isinstance(said, dict)
        assert said["runs"][0]["name"] == "zero-shot"
    runs = state["runs"]
    assert isinstance(runs, list)
    assert state["ready"]
    assert runs[1]["low"] <= runs[1]["value"] <= runs[1]["high"]
    again = post(client_of(run_folder), "next")
    assert (again["answered"], again["image"]) == (20, state["image"])
    assert "over zero-shot" in results_of([run_folder])
    stored = json.loads((Path(run_folder) / "review-results.json").read_bytes())
    assert len(stored["class_shares"]) == 3
    assert stored["runs"][1]["over_zero_shot"]["low"] <= 0.0 <= stored["runs"][1]["over_zero_shot"]["high"]


def test_what_the_runs_say_is_not_told_before_the_answer(run_folder: str) -> None:
    client = client_of(run_folder)
    state = post(client, "next")
    assert set(state) == {"image", "said", "answered", "wanted", "ready", "settled", "runs"}
    assert all(set(run) == {"name"} for run in state["runs"])  # type: ignore[attr-defined]


def test_undo_shows_the_image_again(run_folder: str) -> None:
    client = client_of(run_folder)
    first = post(client, "next")["image"]
    post(client, "answer", id=first, kind="none", name=None)
    state = post(client, "undo")
    assert (state["image"], state["answered"]) == (first, 0)


def test_images_are_given_by_id_and_encoded_anew(run_folder: str) -> None:
    client = client_of(run_folder)
    id_ = str(post(client, "next")["image"])
    response = client.get(f"/{TOKEN}/image/{id_}")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    colour = {"cat": (255, 0, 0), "dog": (0, 128, 0), NAMES[2]: (0, 0, 255)}[truth(run_folder, id_)]
    assert Image.open(io.BytesIO(response.content)).getpixel((3, 3)) == colour


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/image/{id}", f"/{TOKEN}", f"/{TOKEN}/image/nothing",
                                  f"/{TOKEN}/image/..%2F..%2Fconfig.yaml", f"/{TOKEN}/image/../../metrics.json",
                                  f"/{TOKEN}/image/%2Fetc%2Fpasswd", f"/{TOKEN}/review.json"])  # fmt: skip
def test_other_addresses_give_nothing(run_folder: str, path: str) -> None:
    client = client_of(run_folder)
    response = client.get(path.replace("{id}", str(post(client, "next")["image"])), follow_redirects=False)
    assert response.status_code in (404, 307)
    assert len(response.content) < 100


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 400),
        ({"Origin": "http://evil.example"}, 404),
        ({"Origin": "null"}, 404),
        ({"Origin": "http://127.0.0.1:9999"}, 404),
        ({"Sec-Fetch-Site": "cross-site"}, 404),
        ({"Content-Type": "text/plain"}, 404),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 404),
    ],
)
def test_other_pages_and_foreign_names_are_refused(run_folder: str, headers: dict[str, str], status: int) -> None:
    client = client_of(run_folder)
    id_ = str(post(client, "next")["image"])
    body = json.dumps({"reviewer": "me", "id": id_, "kind": "none"}).encode()
    sent = {"Content-Type": "application/json", "Origin": BASE, **headers}
    response = client.post(f"/{TOKEN}/answer", content=body, headers=sent)
    assert response.status_code == status
    assert post(client, "next")["answered"] == 0


def test_a_request_without_origin_is_refused(run_folder: str) -> None:
    client = client_of(run_folder)
    del client.headers["Origin"]
    assert client.post(f"/{TOKEN}/next", json={"reviewer": "me"}).status_code == 404


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"x" * 5000, b"\xff"])
def test_nonsense_is_answered_in_a_sentence(run_folder: str, body: bytes) -> None:
    client = client_of(run_folder)
    response = client.post(f"/{TOKEN}/answer", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "reload" in response.json()["error"]


def test_an_unknown_class_is_answered_in_a_sentence(run_folder: str) -> None:
    client = client_of(run_folder)
    id_ = post(client, "next")["image"]
    body = {"reviewer": "me", "id": id_, "kind": "class", "name": "zebra"}
    response = client.post(f"/{TOKEN}/answer", json=body)
    assert (response.status_code, "zebra" in response.json()["error"]) == (409, True)


def test_names_are_escaped_and_the_page_runs_its_own_script_alone(run_folder: str) -> None:
    response = client_of(run_folder).get(f"/{TOKEN}/")
    assert response.status_code == 200
    assert "<b>sea" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "")
    assert "nonce-" + response.text.split('nonce="')[1].split('"')[0] in policy


def test_features_without_images_are_refused_in_a_sentence(tmp_path: Path) -> None:
    record = make_run(tmp_path, paths=False)
    with pytest.raises(UserError, match=r"holds features, and no image .* column 'path'"):
        review([record.path], browser=False)


def test_runs_of_other_images_or_classes_are_refused(run_folder: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps(metrics | {"class_names": ["a", "b"]}))
    with pytest.raises(UserError, match="has other classes"):
        population_of([open_run(run_folder), open_run(str(copy))])
    with pytest.raises(UserError, match="not a finished run"):
        open_review([str(tmp_path)])


def test_several_runs_are_answerers_of_one_review(run_folder: str, tmp_path: Path) -> None:
    other = make_run(tmp_path, "zero_shot")  # of the same images, and zero-shot is there already
    people = population_of([open_run(run_folder), open_run(other.path)])
    assert people.names == ("zero-shot", Path(run_folder).name)
    assert people.class_RN.shape == (2, IMAGES)


def test_a_port_that_is_taken_is_told(run_folder: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(UserError, match="--port"):
            review([run_folder], port=held.getsockname()[1], browser=False)


def test_images_of_a_folder_are_read_one_by_one(tmp_path: Path) -> None:
    for i in range(5):
        Image.fromarray(np.full((400, 300, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    data = DataSettings(source=str(tmp_path), class_names=["a", "b"])
    source = resolve_source(data.source, rows_per_part=2)
    ids = [id_ for part in source.parts for id_ in read_part(part, data)["id"].to_pylist()]
    images = ReviewImages(source, data, {id_: row for row, id_ in enumerate(ids)}, dict.fromkeys(ids, ""))
    shown = images.read(ids[3], [ids[1]])
    assert shown is not None
    picture = Image.open(io.BytesIO(shown))
    assert (picture.format, picture.size) == ("JPEG", (300, 400))
    assert abs(picture.getpixel((5, 5))[0] - 120) < 4  # type: ignore[index]
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")  # read ahead already
    assert images.read(ids[1]) is not None
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    assert images.read(ids[0]) is None  # its content is another now
    assert images.read(ids[4]) is None


def test_the_run_is_held_while_it_is_reviewed(run_folder: str) -> None:
    record = Run(*run_folder.rsplit("/", 1))
    with record.lock(), pytest.raises(UserError, match="Another raydapt process"):
        review([run_folder], browser=False)


def test_the_page_chooses_among_runs_until_one_is_ahead(made: Path, tmp_path: Path) -> None:
    folder = str(shutil.copytree(made, tmp_path / "run"))
    spoil_zero_shot(Run.at(folder))
    opened = open_review([folder], choose=True)
    record, config = open_run(folder)
    app = make_app(opened, images_of_review(record, config, opened.population), TOKEN)
    client = TestClient(app, base_url=BASE, headers={"Origin": BASE})
    state, answers = post(client, "next"), 0
    while state["image"] is not None:
        image, answers = str(state["image"]), answers + 1
        assert not state["settled"]
        assert client.get(f"/{TOKEN}/image/{image}").status_code == 200
        state = post(client, "answer", id=image, kind="class", name=truth(folder, image))
    assert state["settled"]
    assert 2 <= answers == state["answered"] <= 25
    runs = state["runs"]
    assert isinstance(runs, list)
    assert sum(run["chance"] for run in runs) == pytest.approx(100)
    assert runs[0]["name"] == opened.population.names[1]
