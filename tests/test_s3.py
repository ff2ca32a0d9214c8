"""Artefacts and runs on an S3-compatible server, run locally."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from raydapt.artefacts.pixels import StoredPixels
from raydapt.cluster.joining import ensure_ray
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from raydapt.settings.groups import RaySettings
from raydapt.store.folder import Folder
from raydapt.store.run_record import Run
from raydapt.train.job import CHECKPOINT
from tests.train.test_feed import pixels_in

pytest.importorskip("s3fs")
BUCKET = "raydapt-test"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
SMALL = ["data.limit=200", "train.max_steps_per_round=3", "cpl.rounds=2", "ray.progress=false"]


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
    for name, value in CREDENTIALS.items():
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
    assert folder.address("a.json") == f"{bucket}/store/features-0/a.json"
    assert folder.sizes() == {"a.json": 8}
    folder.append("log", b"1\n")
    folder.append("log", b"2\n")
    assert folder.read("log") == b"1\n2\n"
    folder.remove("a.json")
    folder.remove("a.json")
    assert not folder.exists("a.json")


@pytest.mark.slow
def test_pixels_that_stay_in_the_store_are_read_from_s3(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, pixel_N3SS = pixels_in(f"{bucket}/pixels", monkeypatch, 53)
    row_M = torch.randint(53, (100,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(StoredPixels(made)[row_M], pixel_N3SS[row_M])


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_s3_equals_a_local_one(bucket: str, tmp_path: Path, ray_cluster: None) -> None:
    results = []
    for place in (str(tmp_path), bucket):
        config = load_config(None, [*SMALL, f"store={place}/store", f"runs={place}/runs"])
        record = pipeline.run(config)
        assert record.exists("report.html")
        results.append(json.loads(record.read_bytes("metrics.json")))
    here, there = results
    assert here["adapted"] == there["adapted"]
    assert there["stages"]["features"]["reused"] is False
    config = load_config(None, [*SMALL, "seed=1", f"store={bucket}/store", f"runs={bucket}/runs"])
    again = json.loads(pipeline.run(config).read_bytes("metrics.json"))
    assert again["stages"]["features"]["reused"] is True


def learned(record: Run) -> dict[str, np.ndarray]:
    tensors = load(record.read_bytes(CHECKPOINT))
    return {name: tensor for name, tensor in tensors.items() if name.startswith("method.")}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_training_workers_keep_their_checkpoints_on_s3(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    settings = RaySettings(address="local", cpus=4, progress=False)
    small = [*SMALL, "train.epochs=2", f"store={bucket}/workers"]
    remote = load_config(None, [*small, f"runs={bucket}/runs", "train.workers=2", "name=workers"])
    ray.shutdown()
    with monkeypatch.context() as before:  # a cluster that was started before the credentials were set
        for name in (*CREDENTIALS, "AWS_ENDPOINT_URL"):
            before.delenv(name)
        before.setenv("AWS_EC2_METADATA_DISABLED", "true")
        ensure_ray(settings)
    # This process has them, and a stage that is this small stays in it.
    alone = pipeline.run(load_config(None, [*small, f"runs={tmp_path}"]))
    with pytest.raises(UserError, match=r"Node .* does not reach the storage: Setting runs='s3://.*credentials"):
        pipeline.run(remote)
    ray.shutdown()
    ensure_ray(settings)
    together = pipeline.run(remote)
    ray.shutdown()  # whoever needs one next starts it again
    assert json.loads(together.read_bytes("metrics.json"))["train"]["workers"] == 2
    assert together.folder.child("ray_train").exists("")
    expected = learned(alone)
    assert expected
    for name, tensor in learned(together).items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-3, atol=1e-4)
