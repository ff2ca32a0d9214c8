"""Artefacts and runs on an S3-compatible server, run locally."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydapt import pipeline
from raydapt.config import load_config
from raydapt.storage import Folder

pytest.importorskip("s3fs")
BUCKET = "raydapt-test"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of a bucket; one server for all tests, since fsspec keeps the file system of an address."""
    import boto3
    from moto.server import ThreadedMotoServer

    monkeypatch = pytest.MonkeyPatch()

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    server.stop()
    monkeypatch.undo()


@pytest.mark.slow
def test_a_folder_on_s3_keeps_its_promises(bucket: str) -> None:
    folder = Folder(f"{bucket}/store", setting="store").child("features-0")
    assert folder.sizes() == {}
    with pytest.raises(FileNotFoundError):
        folder.read("a.json")
    folder.write("a.json", b'{"a": 1}')
    folder.write("a.json", b'{"a": 2}')
    assert folder.read_json("a.json") == {"a": 2}
    assert folder.sizes() == {"a.json": 8}
    folder.append("log", b"1\n")
    folder.append("log", b"2\n")
    assert folder.read("log") == b"1\n2\n"
    folder.remove("a.json")
    folder.remove("a.json")
    assert not folder.exists("a.json")


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_s3_equals_a_local_one(bucket: str, tmp_path: Path, ray_cluster: None) -> None:
    small = ["data.limit=200", "train.max_steps_per_round=3", "cpl.rounds=2", "ray.progress=false"]
    results = []
    for place in (str(tmp_path), bucket):
        config = load_config(None, [*small, f"store={place}/store", f"runs={place}/runs"])
        record = pipeline.run(config)
        assert record.exists("report.html")
        results.append(json.loads(record.read_bytes("metrics.json")))
    here, there = results
    assert here["adapted"] == there["adapted"]
    assert there["stages"]["features"]["reused"] is False
    config = load_config(None, [*small, "seed=1", f"store={bucket}/store", f"runs={bucket}/runs"])
    again = json.loads(pipeline.run(config).read_bytes("metrics.json"))
    assert again["stages"]["features"]["reused"] is True
