"""The verb ``review``: a person names some well-chosen images, and the runs' accuracies get an interval."""

import contextlib
import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydapt.errors import UserError
from raydapt.review.estimates import Estimator
from raydapt.review.population import Population
from raydapt.review.results import RESULTS, format_results, results
from raydapt.review.review import Review
from raydapt.review.session import open_session
from raydapt.run.finished import open_run
from raydapt.run.plan import FEATURES, Plan, make_plan
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from raydapt.verbs.review_images import ReviewImages

ZERO_SHOT = "zero-shot"


def open_review(run_folders: Sequence[str], *, seed: int = 0, wanted: int = 60) -> Review:
    """Opens the review of finished runs, or begins it; it lies beside the first one.

    Args:
        run_folders: Finished runs of the same images and classes.
        seed: Of the sample, when it begins.
        wanted: Answers that are aimed for.

    Raises:
        UserError: For folders that are no finished runs, or runs of different images or classes.
    """
    runs = [open_run(folder) for folder in run_folders]
    population = population_of(runs)
    session = open_session(runs[0][0], population, seed=seed)
    return Review(session=session, estimator=Estimator(population, session.design), wanted=wanted)


def review(
    run_folders: Sequence[str],
    *,
    seed: int = 0,
    wanted: int = 60,
    port: int = 0,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Serves the page until it is interrupted; returns the results, which stand beside the first run as well.

    Args:
        run_folders: Finished runs of the same images and classes; the first one holds the review.
        seed: Of the sample, when it begins.
        wanted: Answers that are aimed for.
        port: Of the server; 0 takes a free one.
        browser: Open the page.
        say: Told the page's address.

    Raises:
        UserError: As `open_review`, without the extra, or when images cannot be read or the port is taken.
    """
    serve = _server()
    record, config = open_run(run_folders[0])
    with record.lock():
        opened = open_review(run_folders, seed=seed, wanted=wanted)
        images = images_of_review(record, config, opened.population)
        listener, token = _listen(port), secrets.token_urlsafe(24)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
        say(f"Review: {address}  (end with Ctrl-C; every answer is stored at once)")
        if browser:
            webbrowser.open(address)
        serve(opened, images, token, listener)
        return write_results(record, opened)


def write_results(record: Run, opened: Review) -> dict[str, Any]:
    """Writes ``review-results.json`` beside the run, and returns what it holds."""
    told = results(opened)
    record.write_json(RESULTS, told)
    return told


def results_of(run_folders: Sequence[str]) -> str:
    """The results so far as text; they are written beside the first run as well.

    Raises:
        UserError: As `open_review`.
    """
    record, _ = open_run(run_folders[0])
    return format_results(write_results(record, open_review(run_folders)))


def population_of(runs: Sequence[tuple[Run, Config]], first: pa.Table | None = None) -> Population:
    """What zero-shot and the runs predicted, over the images of the first run, each distinct content once.

    Args:
        runs: Finished runs.
        first: The first run's predictions, where they are not those in its folder.

    Raises:
        UserError: For runs of other classes, or without a prediction of some image of the first.
    """
    classes = _classes(runs[0][0])
    tables = [predictions_of_run(run) for run, _ in runs]
    tables[0] = tables[0] if first is None else first_of_each(first)
    id_N = tables[0]["id"].to_pylist()
    names, columns = [ZERO_SHOT], [_answers(tables[0], "zero_shot", classes)]
    for (run, config), table in zip(runs, tables, strict=True):
        if _classes(run) != classes:
            raise UserError(
                f"Run {run.path!r} has other classes than {runs[0][0].path!r}: review runs of the same ones."
            )
        position = {id_: at for at, id_ in enumerate(table["id"].to_pylist())}
        if any(id_ not in position for id_ in id_N):
            raise UserError(
                f"Run {run.path!r} has no prediction for some images of {runs[0][0].path!r}: review runs of the same "
                "images."
            )
        if config.method != "zero_shot":
            names.append(run.name)
            columns.append(_answers(table.take([position[id_] for id_ in id_N]), "predicted", classes))
    class_RN, confidence_RN = (np.stack(parts) for parts in zip(*columns, strict=True))
    return Population(
        id_N=tuple(id_N), names=tuple(names), classes=classes, class_RN=class_RN, confidence_RN=confidence_RN
    )


def images_of_review(record: Run, config: Config, population: Population) -> ReviewImages:
    """The images of a run's predictions.

    Raises:
        UserError: If the run's source cannot be read, or holds features without their images' addresses.
    """
    table = predictions_of_run(record)
    path_of = dict(zip(table["id"].to_pylist(), table["path"].to_pylist(), strict=True))
    plan, row_of = image_rows(record, config, population.id_N)
    return ReviewImages(plan.source, plan.config.data, row_of, path_of)


def image_rows(record: Run, config: Config, ids: Sequence[str]) -> tuple[Plan, dict[str, int]]:
    """The plan of a finished run, and the row of each image in its source; empty for features in place of images.

    Raises:
        UserError: If the run's source cannot be read, or its store no longer tells where the images are.
    """
    plan = make_plan(config)
    artefact, row_of, wanted = plan.store.artefact_of(plan.facts.features), dict[str, int](), set(ids)
    if plan.source.width:
        return plan, row_of
    if not artefact.complete():
        raise UserError(
            f"Store {config.store!r} no longer holds the {FEATURES} of run {record.name}, which tell where each image "
            "is: run its command again, which makes them anew."
        )
    for part in artefact.iter_tables(["row", "id"]):
        for row, id_ in zip(part["row"].to_pylist(), part["id"].to_pylist(), strict=True):
            if id_ in wanted:
                row_of.setdefault(id_, row)
    return plan, row_of


def predictions_of_run(run: Run) -> pa.Table:
    """``predictions.parquet`` of a folder, the first row of every id.

    Raises:
        UserError: If the folder has none.
    """
    if not run.exists("predictions.parquet"):
        raise UserError(f"Folder {run.path!r} has no predictions.parquet: run its command again with --overwrite.")
    return first_of_each(pq.read_table(pa.BufferReader(run.read_bytes("predictions.parquet"))))


def _classes(run: Run) -> tuple[str, ...]:
    return tuple(run.read_json("metrics.json")["class_names"])


def first_of_each(table: pa.Table) -> pa.Table:
    """The first row of every id."""
    first: dict[str, int] = {}
    for at, id_ in enumerate(table["id"].to_pylist()):
        first.setdefault(id_, at)
    return table.take(list(first.values()))


def _answers(table: pa.Table, column: str, classes: tuple[str, ...]) -> tuple[Any, Any]:
    index_of = {name: c for c, name in enumerate(classes)}
    confidence = "confidence" if column == "predicted" else "zero_shot_confidence"
    class_N = np.array([index_of[name] for name in table[column].to_pylist()], dtype=np.int64)
    return class_N, table[confidence].to_numpy().astype(np.float64)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()  # so that who is told the address may ask at once
    except OSError as error:
        listener.close()
        raise UserError(f"Option --port={port} cannot be used ({error.strerror}): give another, or none.") from None
    return listener


def _server() -> Callable[[Review, ReviewImages, str, socket.socket], None]:
    """The server, which an extra brings."""
    try:
        import uvicorn

        from raydapt.verbs.review_server import make_app
    except ImportError:
        raise UserError("The page of a review needs an extra: pip install 'raydapt[review]'.") from None

    def serve(opened: Review, images: ReviewImages, token: str, listener: socket.socket) -> None:
        app = make_app(opened, images, token)
        # The access log would hold the token.
        settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended
            uvicorn.Server(settings).run(sockets=[listener])

    return serve
