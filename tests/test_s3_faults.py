"""Workers that commit to an S3-compatible server which answers some of their writes with 500 and 503."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raydapt.cluster.joining import ensure_ray
from raydapt.errors import UserError
from raydapt.stages.run import run_stage
from raydapt.store.artefact import Store
from tests.servers import served
from tests.stages.test_commit import PARTS, RECIPE, ROWS, expected_shards, stage_of_actors
from tests.stages.test_run import SETTINGS
from tests.test_s3 import CREDENTIALS

pytest.importorskip("s3fs")
BUCKET = "raydapt-faults"
_ANSWERS = {
    500: ("500 Internal Server Error", "InternalError"),
    503: ("503 Slow Down", "SlowDown"),
}
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Faulty:
    """The server's application, behind one that refuses writes of parts in turn with 500 and 503.

    Attributes:
        refusals: So many writes of each part are refused before one is let through.
        refused: How many there were, by the address of the part.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self.refusals, self.refused = 0, Counter[str]()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "PUT" or "/part-" not in path or self.refused[path] >= self.refusals:
            return self._application(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.refused[path] += 1
        status, code = _ANSWERS[500 if self.refused[path] % 2 else 503]
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>Please try again.</Message></Error>".encode()]


@pytest.fixture
def server() -> Iterator[Faulty]:
    """A server with the bucket `BUCKET`, and a Ray cluster of which every process knows it."""
    import boto3
    import ray
    import s3fs
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faulty = Faulty(DomainDispatcherApplication(create_backend_app))
    with (
        served(make_server("127.0.0.1", 0, faulty, threaded=True)) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{running.port}"}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # those of other tests know another server
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        ray.shutdown()
        ensure_ray(SETTINGS)
        yield faulty
        ray.shutdown()  # whoever needs one next starts it again
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_server_that_answers_500_and_503_loses_and_doubles_nothing(server: Faulty, tmp_path: Path) -> None:
    shards, notes = expected_shards(tmp_path / "here"), tmp_path / "notes"
    rows = [1000 * part + k for part in range(PARTS) for k in range(ROWS)]
    server.refusals = 2  # then it takes them: nobody notices
    store = Store(f"s3://{BUCKET}/busy")
    artefact = run_stage(store, stage_of_actors(store)).artefact
    assert set(server.refused.values()) == {2}
    assert len(server.refused) == PARTS
    assert artefact.manifest.shards == shards
    assert artefact.read()["row"].to_pylist() == rows
    server.refusals, server.refused = 10**6, Counter()  # for good, but for the first parts
    store = Store(f"s3://{BUCKET}/broken")
    for part in (0, 1):
        server.refused[f"/{BUCKET}/broken/values/{RECIPE.fingerprint}/part-0000{part}.parquet"] = 10**6
    with pytest.raises(UserError, match=r"store='s3://raydapt-faults/broken' cannot be written") as caught:
        run_stage(store, stage_of_actors(store))
    assert "\n" not in str(caught.value)
    assert store.artefact_of(RECIPE).find_manifest() is None
    server.refusals = 0
    kept = store.artefact_of(RECIPE).committed_parts()
    assert kept <= {0, 1}
    artefact = run_stage(store, stage_of_actors(store, notes)).artefact
    assert len(notes.read_text().split()) == PARTS - len(kept)
    assert artefact.manifest.shards == shards
    assert artefact.read()["row"].to_pylist() == rows
