"""The verb ``review``: a person names some well-chosen images, and the runs' accuracies get an interval."""

import contextlib
import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence

from raydapt.errors import UserError
from raydapt.review.choosing import Chooser
from raydapt.review.estimates import Estimator
from raydapt.review.population import Population
from raydapt.review.results import CHOICE, RESULTS, choice, format_choice, format_results, results
from raydapt.review.review import Review
from raydapt.review.session import open_session
from raydapt.run.finished import open_folder, open_run
from raydapt.run.origin import require_own_source
from raydapt.run.plan import FEATURES, Plan, make_plan
from raydapt.settings.config import Config
from raydapt.store.run_record import Run
from raydapt.verbs.review_images import ReviewImages
from raydapt.verbs.review_population import (
    SWEEP,
    answers_of_sweep,
    is_sweep,
    population_of,
    population_of_sweep,
    predictions_of_run,
    write_chosen,
)


def open_review(run_folders: Sequence[str], *, seed: int = 0, wanted: int = 60, choose: bool = False) -> Review:
    """Opens the review of finished runs, or begins it; it lies beside the first one.

    Args:
        run_folders: Finished runs of the same images and classes; to choose, also one sweep, whose trials are the runs.
        seed: Of the sample, when it begins.
        wanted: Answers that are aimed for.
        choose: Ask for what tells the runs apart, not for what estimates them.

    Raises:
        UserError: For folders that are no finished runs, runs of different images or classes, or a single run to choose
            among.
    """
    if is_sweep(run_folders[0]):
        if not choose or len(run_folders) > 1:
            raise UserError(
                f"Folder {run_folders[0]!r} is a sweep: choose among its trials with 'raydapt review "
                f"{run_folders[0]} --choose', and review runs for estimates."
            )
        record, _ = open_folder(run_folders[0])
        population = population_of_sweep(record)
    else:
        runs = [open_run(folder) for folder in run_folders]
        record, population = runs[0][0], population_of(runs)
    if choose and len(population.names) < 2:
        raise UserError(f"Folder {run_folders[0]!r} holds one candidate alone: give several runs, or a sweep.")
    session = open_session(record, population, seed=seed)
    chooser = Chooser(population, seed=session.design.seed) if choose else None
    return Review(session=session, estimator=Estimator(population, session.design), wanted=wanted, chooser=chooser)


def review(
    run_folders: Sequence[str],
    *,
    seed: int = 0,
    wanted: int = 60,
    port: int = 0,
    browser: bool = True,
    choose: bool = False,
    say: Callable[[str], None] = print,
) -> str:
    """Serves the page until it is interrupted; returns the results as text, which stand beside the first run as well.

    Args:
        run_folders: Finished runs of the same images and classes; the first one holds the review.
        seed: Of the sample, when it begins.
        wanted: Answers that are aimed for.
        port: Of the server; 0 takes a free one.
        browser: Open the page.
        choose: As `open_review`.
        say: Told the page's address.

    Raises:
        UserError: As `open_review`, without the extra, or when images cannot be read or the port is taken.
    """
    serve = _server()
    record, config = open_first(run_folders)
    with record.lock():
        opened = open_review(run_folders, seed=seed, wanted=wanted, choose=choose)
        images = images_of_review(record, config, opened.population)
        listener, token = _listen(port), secrets.token_urlsafe(24)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
        say(f"Review: {address}  (end with Ctrl-C; every answer is stored at once)")
        if browser:
            webbrowser.open(address)
        serve(opened, images, token, listener)
        return write_results(record, opened)


def write_results(record: Run, opened: Review) -> str:
    """Writes ``review-results.json`` (of a choice ``review-choice.json``) beside the run, and returns it as text."""
    if opened.chooser is None:
        told = results(opened)
        record.write_json(RESULTS, told)
        return format_results(told)
    told = choice(opened)
    record.write_json(CHOICE, told)
    lines = format_choice(told)
    return f"{lines}\n{write_chosen(record, told['chosen'])}" if record.exists(SWEEP) else lines


def results_of(run_folders: Sequence[str], *, choose: bool = False) -> str:
    """The results so far as text; they are written beside the first run as well.

    Raises:
        UserError: As `open_review`.
    """
    record, _ = open_first(run_folders)
    return write_results(record, open_review(run_folders, choose=choose))


def open_first(run_folders: Sequence[str]) -> tuple[Run, Config]:
    """The run, or sweep, that holds the review."""
    return open_folder(run_folders[0]) if is_sweep(run_folders[0]) else open_run(run_folders[0])


def images_of_review(record: Run, config: Config, population: Population) -> ReviewImages:
    """The images of a run's predictions.

    Raises:
        UserError: If the run's source cannot be read, or holds features without their images' addresses.
    """
    table = answers_of_sweep(record)[0][1] if record.exists(SWEEP) else predictions_of_run(record)
    path_of = dict(zip(table["id"].to_pylist(), table["path"].to_pylist(), strict=True))
    require_own_source(record, config, ())
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
