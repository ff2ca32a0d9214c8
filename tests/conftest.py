"""Shared fixtures: a private local Ray cluster for the session, and where the test data lies."""

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any test imports ray: no usage reports, never join a cluster that happens to run on this machine.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ADDRESS"] = "local"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


_LONGEST = (
    *("test_caption_engine", "test_lost_nodes", "test_submission", "test_engine_here", "test_tuner"),
    *("test_caption_models", "test_killed_run", "test_pipeline", "test_describe_engine", "test_here"),
)
"""Files that take minutes, the longest first: begun last, they would keep one worker busy while the others wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that take longest."""
    place = {name: at for at, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def _start_ray() -> None:
    """Starts the session's cluster where it does not run."""
    import ray

    from raydapt.cluster.joining import ensure_ray
    from raydapt.settings.groups import RaySettings

    settings = RaySettings(address="local", cpus=4, progress=False)
    with warnings.catch_warnings():
        # What a failed start leaves warns when it is collected, and would fail a test that has nothing to do with it.
        warnings.simplefilter("ignore")
        for last in (False, False, True):
            try:
                ensure_ray(settings)
                break
            except Exception as error:  # Ray itself raises no narrower kind; it gives a node 30 s to start
                if last or "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
        gc.collect()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of 4 logical CPUs for all tests; the package's own connection is used."""
    import ray

    _start_ray()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.shutdown()
        gc.collect()


@pytest.fixture(autouse=True)
def _ray_is_there(request: pytest.FixtureRequest) -> None:
    """A test with nodes of its own takes the session's cluster down; here it comes back for those who need it."""
    if "ray_cluster" in request.fixturenames:
        _start_ray()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the named test sets; the test is skipped where there is none."""
    folder = os.environ.get("RAYDAPT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RAYDAPT_DATA does not name a folder of data sets.")
    return Path(folder)
