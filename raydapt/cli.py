"""The command line: verbs, no logic. Every verb is a Python function of the same name elsewhere in the package.

Settings are read and the source is looked up before anything heavy is imported, so that a mistake is answered at once.
Exit codes: 0 done, 2 the user's mistake (one sentence), 1 anything else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raydapt import __version__
from raydapt.errors import UserError
from raydapt.verbs.imports import import_models
from raydapt.verbs.labelled_command import labelled_set_options, precision_option, threshold
from raydapt.verbs.push_command import push

if TYPE_CHECKING:  # torch and Ray take seconds to import: a typing error is answered without them
    from raydapt.settings.config import Config

_CONFIG = click.argument("config", required=False, metavar="[METHOD|JOB.yaml]")
_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_ALIASES = {"plan": "estimate", "study": "tune-report", "samples": "sample-curve"}
"""Names that verbs had; they stay, hidden, for one release."""


class _Verbs(click.Group):
    """The verbs, which answer to their old names as well."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, _ALIASES.get(cmd_name, cmd_name))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raydapt")
def cli() -> None:
    """Adapts CLIP-like models to an image domain for which there are class names and no labels."""


@cli.command()
@_CONFIG
@_OVERRIDES
@click.option("--dry-run", is_flag=True, help="Print the plan: stages, inputs, what is already there.")
@click.option("--overwrite", is_flag=True, help="Train and evaluate anew; stored artefacts are reused.")
@precision_option
@labelled_set_options
def run(
    config: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    overwrite: bool,
    precision: float | None,
    **places: Any,
) -> None:
    """Takes images and class names through features, pseudo-labels and learning to a report.

    Give the name of a method, a job file such as jobs/cpl.yaml, or settings alone. The same command again resumes.
    """
    settings = _load(config, overrides)
    from raydapt.run import pipeline
    from raydapt.verbs import labelled_files

    if dry_run:
        click.echo(pipeline.describe(settings))
        return
    wanted = labelled_files.Places(**places)
    wanted.check()
    record = pipeline.run(settings, overwrite=overwrite)
    click.echo(pipeline.in_words(record))
    for line in labelled_files.after_prediction(record.folder.address("").rstrip("/"), (), wanted, precision=precision):
        click.echo(line)


@cli.command()
@_CONFIG
@_OVERRIDES
def tune(config: str | None, overrides: tuple[str, ...]) -> None:
    """Searches settings without labels: many short trials, ranked by label-free scores, and the best as a job file.

    With the name of a method in place of a job file, its recipe is searched in a space that comes with raydapt. Running
    the same command again goes on where it was.
    """
    settings = _load(config, overrides, recipe="tune")
    from raydapt.tune import sweep

    click.echo(sweep.tune(settings))


@cli.command("tune-report")
@click.argument("sweep_folders", nargs=-1, required=True)
def tune_report(sweep_folders: tuple[str, ...]) -> None:
    """Prints how close label-free choices came to the best trial, over sweeps that ran with tune.oracle=true."""
    from raydapt.tune import study as study_

    click.echo(study_.summary(list(sweep_folders)))


@cli.command()
@_CONFIG
@_OVERRIDES
@click.option("--output", help="Folder for features.parquet and classes.parquet, which another machine can adapt to.")
@click.option("--half", is_flag=True, help="Write float16, which takes half the space.")
def features(config: str | None, overrides: tuple[str, ...], output: str | None, half: bool) -> None:
    """Computes the CLIP features of an image set and prints where they are."""
    settings = _load(config, overrides)
    from raydapt.run import pipeline

    for place in pipeline.features(settings, output=output, precision="float16" if half else "float32"):
        click.echo(place)


@cli.command()
@_CONFIG
@_OVERRIDES
def synthesize(config: str | None, overrides: tuple[str, ...]) -> None:
    """Makes synthetic images of every class with a diffusion pipeline and prints where they are."""
    settings = _load(config, overrides)
    from raydapt.verbs.synthesize import synthesize as synthesize_

    click.echo(synthesize_(settings))


@cli.command()
@click.argument("config", required=False, metavar="[JOB.yaml|SOURCE]")
@_OVERRIDES
@click.option("--groups", is_flag=True, help="Also describe groups of four images of the same zero-shot class.")
@click.option("--output", help="Folder for image_captions.parquet; the default leaves them in the store.")
def caption(config: str | None, overrides: tuple[str, ...], groups: bool, output: str | None) -> None:
    """Describes every image with a vision-language model and prints where the captions are.

    Works on any source: raydapt caption photos/ caption.model=llava-hf/llava-v1.6-mistral-7b-hf
    """
    is_source = config is not None and ("=" not in config or Path(config).expanduser().exists())
    if is_source and Path(str(config)).suffix not in (".yaml", ".yml"):
        config, overrides = None, (f"data.source={json.dumps(config)}", *overrides)
    settings = _load(config, overrides)
    from raydapt.verbs.caption import caption as caption_

    for place in caption_(settings, groups=groups, output=output):
        click.echo(place)


@cli.command()
@_CONFIG
@_OVERRIDES
@click.option("--output", help="The YAML file; the default lies in the store.")
def describe(config: str | None, overrides: tuple[str, ...], output: str | None) -> None:
    """Lets an instruct language model write what the classes look like, as fair.descriptions reads it."""
    settings = _load(config, overrides)
    from raydapt.verbs import describe as describing

    click.echo(describing.describe(settings, output=output))


@cli.command("sample-curve")
@_CONFIG
@_OVERRIDES
@click.option("--counts", default="0,5,10,20,50,100,150,300,500", show_default=True, help="Images per class.")
def sample_curve(config: str | None, overrides: tuple[str, ...], counts: str) -> None:
    """Plots what AiR reaches with more and more synthetic images per class."""
    numbers = counts.replace(" ", "").split(",")
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"Option --counts={counts!r} is no list of numbers: write it as 0,50,100.")
    settings = _load(config, overrides)
    from raydapt.verbs import sample_curve as curve

    record, points = curve.sample_curve(settings, [int(number) for number in numbers])
    click.echo(curve.format_points(points))
    click.echo(f"Curve: {record.file('curve.svg')}")


@cli.command()
@click.argument("run_folder")
def status(run_folder: str) -> None:
    """Tells how far a run is that another shell has started, or where a stopped one will go on."""
    from raydapt.run.status import status as status_

    click.echo(status_(run_folder))


@cli.command()
@click.argument("run_folder")
@_OVERRIDES
@click.option("--output", help="Where to write; the default is the run folder itself.")
@precision_option
@labelled_set_options
def predict(
    run_folder: str, overrides: tuple[str, ...], output: str | None, precision: float | None, **places: Any
) -> None:
    """Predicts new images (data.source=…) with an adapted run."""
    import_models()
    from raydapt.run import prediction
    from raydapt.verbs import labelled_files

    wanted = labelled_files.Places(**places)
    wanted.check()
    table = prediction.predict(run_folder, list(overrides), output=output)
    click.echo(table)
    for line in labelled_files.after_prediction(run_folder, overrides, wanted, precision=precision, table=table):
        click.echo(line)


@cli.command()
@click.argument("run_folder")
@_OVERRIDES
def evaluate(run_folder: str, overrides: tuple[str, ...]) -> None:
    """Measures an adapted run on labelled images, of its own set or another one (data.source=…)."""
    import_models()
    from raydapt.run import prediction

    click.echo(prediction.evaluate_on(run_folder, list(overrides)))


@cli.command()
@click.argument("run_folders", nargs=-1, required=True)
@click.option("--output", help="Also write the table to this file (.md or .csv).")
def compare(run_folders: tuple[str, ...], output: str | None) -> None:
    """Prints finished runs side by side, mean and deviation over seeds."""
    from raydapt.report import compare as compare_
    from raydapt.run.reporting import compare_runs

    rows = compare_runs(list(run_folders))
    click.echo(compare_.format_table(rows))
    if output:
        for path in compare_.write_tables(rows, output):
            click.echo(f"Table: {path}")


@cli.command()
@click.argument("run_folder")
def report(run_folder: str) -> None:
    """Writes the report of a finished run anew."""
    from raydapt.run.reporting import write_run_report

    click.echo(write_run_report(run_folder))


@cli.command()
@click.argument("run_folders", nargs=-1, required=True)
@click.option("--wanted", type=click.IntRange(min=10), default=60, show_default=True, help="Answers to aim for.")
@click.option("--seed", default=0, show_default=True, help="Of the sample of a review that begins.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the page; the default is a free one.")
@click.option("--no-browser", is_flag=True, help="Print the address, and open nothing.")
@click.option("--choose", is_flag=True, help="Ask which run (or trial of a sweep) is the best, not how good each is.")
@click.option("--results", is_flag=True, help="Print what the answers so far say, and serve nothing.")
def review(run_folders: tuple[str, ...], results: bool, no_browser: bool, choose: bool, **given: int) -> None:
    """Asks a person about some well-chosen images, and says how good zero-shot and the runs are, within which interval.

    Opens a page on this machine. The first run holds the answers; the same command goes on where it was.
    """
    from raydapt.verbs import review as reviews

    if results:
        click.echo(reviews.results_of(run_folders, choose=choose))
        return
    click.echo(reviews.review(run_folders, browser=not no_browser, choose=choose, say=click.echo, **given))


@cli.command()
@click.argument("run_folder")
@click.option("--output", required=True, help="Folder to write to.")
def export(run_folder: str, output: str) -> None:
    """Writes the adapted model of a finished run as ONNX and safetensors with a model card."""
    from raydapt.verbs import export as export_

    click.echo(export_.export(run_folder, output))


@cli.command()
@_OVERRIDES
@click.option("--features", is_flag=True, help="CLIP features of WHU-RS19 (RAYDAPT_DATA) in place of the digits.")
def demo(overrides: tuple[str, ...], features: bool) -> None:
    """Runs the built-in handwritten digits through every method, offline, and compares them."""
    import_models()
    from raydapt.verbs import demo as demo_

    demo_.demo(list(overrides), features=features)


@cli.command()
@click.argument("config", metavar="METHOD|JOB.yaml|KEY=VALUE")
@_OVERRIDES
@click.option("--address", default="http://127.0.0.1:8265", show_default=True, help="Dashboard of the cluster.")
@click.option("--verb", default="run", show_default=True, help="The verb that runs the job there.")
@click.option("--env", "variables", multiple=True, metavar="NAME", help="Pass on this variable too; never a secret.")
@click.option("--working-dir", default=".", show_default=True, help="Folder that travels to the cluster.")
@click.option("--no-wait", is_flag=True, help="Return once the job is accepted.")
@click.option("--status", is_flag=True, help="Print the job's state and send nothing.")
@click.option("--stop", is_flag=True, help="Stop the job; submitting it again resumes it.")
def submit(
    config: str,
    overrides: tuple[str, ...],
    address: str,
    verb: str,
    variables: tuple[str, ...],
    working_dir: str,
    no_wait: bool,
    status: bool,
    stop: bool,
) -> None:
    """Sends a job to a running Ray cluster, follows its log and exits with the job's exit code.

    The same command again attaches to the job that waits or runs; after a failure it starts it anew, and it resumes.
    """
    from raydapt.verbs import submit as submission

    sent = submission.prepare(config, overrides, verb=verb, variables=variables, working_dir=working_dir)
    client = submission.connect(address)
    if status or stop:
        click.echo(submission.stop(client, sent.submission_id) if stop else submission.state_line(client, sent))
        return
    click.echo(sent.command_line(address))
    sys.exit(submission.send(client, sent, lambda text: click.echo(text, nl=False), wait=not no_wait))


@cli.command()
@_CONFIG
@_OVERRIDES
@click.option("--measured", metavar="RUN", help="Finished run that the rates come from; the default is this job's own.")
@click.option("--check", "other", metavar="RUN", help="Compare the estimate with what this other run took.")
@click.option("--actors", type=click.IntRange(min=1), help="Actors and workers; the default is as measured.")
@click.option("--price", type=click.FloatRange(min=0), default=0.0, help="Price of one actor's hour.")
def estimate(
    config: str | None,
    overrides: tuple[str, ...],
    measured: str | None,
    other: str | None,
    actors: int | None,
    price: float,
) -> None:
    """Estimates hours, storage and cost of a job for 10^4 to 10^8 images, from a finished run of it on fewer."""
    settings = _load(config, overrides)
    from raydapt.run.finished import run_metrics
    from raydapt.run.prediction import run_of_job
    from raydapt.verbs import estimate as estimates

    metrics = run_metrics(measured or run_of_job(settings))
    lines = [line for n in estimates.SIZES for line in estimates.estimate(metrics, n, actors=actors, price=price)]
    click.echo(estimates.format_estimate(lines))
    if other:
        click.echo("\n" + estimates.format_check(estimates.check(metrics, run_metrics(other))))


@cli.command()
@_CONFIG
@_OVERRIDES
def doctor(config: str | None, overrides: tuple[str, ...]) -> None:
    """Examines this machine: versions, GPU, vLLM, disk, Ray's token and dashboard, storage; exits 1 on a failure."""
    settings = _load(config, overrides)
    from raydapt.verbs import doctor as doctor_

    findings = doctor_.examine(settings)
    click.echo(doctor_.format_findings(findings))
    sys.exit(1 if any(finding.state == "failure" for finding in findings) else 0)


cli.add_command(push)
cli.add_command(threshold)


def main() -> None:
    """Runs the command line and turns a user's mistake into one sentence and exit code 2."""
    from raydapt.progress import log_to_console, silence_libraries

    silence_libraries()
    log_to_console()
    try:
        cli()
    except UserError as error:
        click.echo(f"raydapt: {error}", err=True)
        sys.exit(2)


def _load(config: str | None, overrides: tuple[str, ...], recipe: str | None = None) -> Config:
    """The settings of a command line; the source is looked up, so that a mistyped one is answered at once."""
    from raydapt.data.sources import check_source
    from raydapt.methods.configuration import load_job

    settings = load_job(config, overrides, recipe=recipe)
    check_source(settings.data.source)
    import_models()
    return settings


if __name__ == "__main__":
    main()
