"""The command line: verbs, no logic. Every verb is a Python function of the same name elsewhere in the package.

Exit codes: 0 done, 2 the user's mistake (one sentence), 1 anything else.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raydapt import __version__
from raydapt.errors import UserError

if TYPE_CHECKING:  # torch and Ray take seconds to import: a typing error is answered without them
    from raydapt.settings.config import Config
    from raydapt.store.run_record import Run

_CONFIG = click.argument("config", required=False)
_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raydapt")
def cli() -> None:
    """Adapts CLIP-like models to an image domain for which there are class names and no labels."""


@cli.command()
@_CONFIG
@_OVERRIDES
@click.option("--dry-run", is_flag=True, help="Print the plan: stages, inputs, what is already there.")
@click.option("--overwrite", is_flag=True, help="Train and evaluate anew; stored artefacts are reused.")
def run(config: str | None, overrides: tuple[str, ...], dry_run: bool, overwrite: bool) -> None:
    """Takes images and class names through features, pseudo-labels and learning to a report.

    CONFIG is a job file such as jobs/cpl.yaml. Running the same command again resumes.
    """
    from raydapt.run import pipeline

    settings = _load(config, overrides)
    if dry_run:
        click.echo(pipeline.describe(settings))
        return
    _announce(pipeline.run(settings, overwrite=overwrite))


@cli.command()
@_CONFIG
@_OVERRIDES
def tune(config: str | None, overrides: tuple[str, ...]) -> None:
    """Searches settings without labels: many short trials, ranked by label-free scores, and the best as a job file.

    Running the same command again goes on where it was.
    """
    from raydapt.tune import sweep

    click.echo(sweep.tune(_load(config, overrides)))


@cli.command()
@click.argument("sweep_folders", nargs=-1, required=True)
def study(sweep_folders: tuple[str, ...]) -> None:
    """Prints how close label-free choices came to the best trial, over sweeps that ran with tune.oracle=true."""
    from raydapt.tune import study as study_

    click.echo(study_.summary(list(sweep_folders)))


@cli.command()
@_CONFIG
@_OVERRIDES
def features(config: str | None, overrides: tuple[str, ...]) -> None:
    """Computes the CLIP features of an image set and prints where they are."""
    from raydapt.run import pipeline

    click.echo(pipeline.features(_load(config, overrides)))


@cli.command()
@_CONFIG
@_OVERRIDES
def synthesize(config: str | None, overrides: tuple[str, ...]) -> None:
    """Makes synthetic images of every class with a diffusion pipeline and prints where they are."""
    from raydapt.run import pipeline

    click.echo(pipeline.synthesize(_load(config, overrides)))


@cli.command()
@click.argument("config", required=False, metavar="[JOB.yaml|SOURCE]")
@_OVERRIDES
@click.option("--groups", is_flag=True, help="Also describe groups of four images of the same zero-shot class.")
@click.option("--output", help="Folder for image_captions.parquet; the default leaves them in the store.")
def caption(config: str | None, overrides: tuple[str, ...], groups: bool, output: str | None) -> None:
    """Describes every image with a vision-language model and prints where the captions are.

    Works on any source: raydapt caption photos/ caption.model=llava-hf/llava-v1.6-mistral-7b-hf
    """
    from raydapt.stages import captioning

    if config is not None and "=" not in config and Path(config).suffix not in (".yaml", ".yml"):
        config, overrides = None, (f"data.source={json.dumps(config)}", *overrides)
    for place in captioning.caption(_load(config, overrides), groups=groups, output=output):
        click.echo(place)


@cli.command()
@_CONFIG
@_OVERRIDES
@click.option("--output", help="The YAML file; the default lies in the store.")
def describe(config: str | None, overrides: tuple[str, ...], output: str | None) -> None:
    """Lets an instruct language model write what the classes look like, as fair.descriptions reads it."""
    from raydapt.verbs import describe as describing

    click.echo(describing.describe(_load(config, overrides), output=output))


@cli.command()
@_CONFIG
@_OVERRIDES
@click.option("--counts", default="0,5,10,20,50,100,150,300,500", show_default=True, help="Images per class.")
def samples(config: str | None, overrides: tuple[str, ...], counts: str) -> None:
    """Plots what AiR reaches with more and more synthetic images per class."""
    from raydapt.verbs import sample_curve

    numbers = counts.replace(" ", "").split(",")
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"Option --counts={counts!r} is no list of numbers: write it as 0,50,100.")
    record, points = sample_curve.sample_curve(_load(config, overrides), [int(number) for number in numbers])
    click.echo(sample_curve.format_points(points))
    click.echo(f"Curve: {record.file('curve.svg')}")


@cli.command()
@click.argument("run_folder")
@_OVERRIDES
@click.option("--output", help="Where to write; the default is the run folder itself.")
def predict(run_folder: str, overrides: tuple[str, ...], output: str | None) -> None:
    """Predicts new images (data.source=…) with an adapted run."""
    from raydapt.run import prediction

    click.echo(prediction.predict(run_folder, list(overrides), output=output))


@cli.command()
@click.argument("run_folder")
@_OVERRIDES
def evaluate(run_folder: str, overrides: tuple[str, ...]) -> None:
    """Measures an adapted run on labelled images, of its own set or another one (data.source=…)."""
    from raydapt.run import prediction

    click.echo(prediction.evaluate_on(run_folder, list(overrides)))


@cli.command()
@click.argument("run_folders", nargs=-1, required=True)
@click.option("--output", help="Also write the table to this file (.md or .csv).")
def compare(run_folders: tuple[str, ...], output: str | None) -> None:
    """Prints finished runs side by side, mean and deviation over seeds."""
    from raydapt.report import compare as compare_

    rows = compare_.compare(list(run_folders))
    click.echo(compare_.format_table(rows))
    if output:
        for path in compare_.write_tables(rows, output):
            click.echo(f"Table: {path}")


@cli.command()
@click.argument("run_folder")
def report(run_folder: str) -> None:
    """Writes the report of a finished run anew."""
    from raydapt.report.page import write_report

    click.echo(write_report(run_folder))


@cli.command()
@click.argument("run_folder")
@click.option("--output", required=True, help="Folder to write to.")
def export(run_folder: str, output: str) -> None:
    """Writes the adapted model of a finished run as ONNX and safetensors with a model card."""
    from raydapt.verbs import export as export_

    click.echo(export_.export(run_folder, output))


@cli.command()
@_OVERRIDES
def demo(overrides: tuple[str, ...]) -> None:
    """Runs the built-in handwritten digits through every method, offline, and compares them."""
    from raydapt.verbs import demo as demo_

    demo_.demo(list(overrides))


@cli.command()
@click.argument("config")
@_OVERRIDES
@click.option("--address", default="http://127.0.0.1:8265", show_default=True, help="Dashboard of the cluster.")
@click.option("--verb", default="run", show_default=True, help="The verb that runs the job file there.")
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
    """Sends a job file to a running Ray cluster, follows its log and exits with the job's exit code.

    The same command again attaches to the job that waits or runs; after a failure it starts it anew, and it resumes.
    """
    from raydapt.verbs import submit as submission

    sent = submission.prepare(config, overrides, verb=verb, variables=variables, working_dir=working_dir)
    client = submission.connect(address)
    if status or stop:
        click.echo(submission.stop(client, sent.submission_id) if stop else submission.state_line(client, sent))
        return
    click.echo(sent.command_line(address))
    started = submission.submit(client, sent)
    click.echo(f"{sent.submission_id}: {'submitted' if started else 'there already, attached to it'}")
    if no_wait:
        return
    submission.follow(client, sent.submission_id, lambda text: click.echo(text, nl=False))
    click.echo(submission.state_line(client, sent))
    sys.exit(submission.exit_code(client, sent.submission_id))


@cli.command()
@click.argument("config")
@_OVERRIDES
@click.option("--measured", metavar="RUN", help="Finished run that the rates come from; the default is this job's own.")
@click.option("--check", "other", metavar="RUN", help="Compare the estimate with what this other run took.")
@click.option("--actors", type=click.IntRange(min=1), help="Actors and workers; the default is as measured.")
@click.option("--price", type=click.FloatRange(min=0), default=0.0, help="Price of one actor's hour.")
def plan(
    config: str,
    overrides: tuple[str, ...],
    measured: str | None,
    other: str | None,
    actors: int | None,
    price: float,
) -> None:
    """Estimates hours, storage and cost of a job for 10^4 to 10^8 images, from a finished run of it on fewer."""
    from raydapt.run.prediction import run_metrics, run_of_job
    from raydapt.verbs import estimate

    metrics = run_metrics(measured or run_of_job(_load(config, overrides)))
    sizes = estimate.SIZES
    lines = [line for n in sizes for line in estimate.estimate(metrics, n, actors=actors, price=price)]
    click.echo(estimate.format_estimate(lines))
    if other:
        click.echo("\n" + estimate.format_check(estimate.check(metrics, run_metrics(other))))


@cli.command()
@_CONFIG
@_OVERRIDES
def doctor(config: str | None, overrides: tuple[str, ...]) -> None:
    """Examines this machine: versions, GPU, vLLM, disk, Ray's token and dashboard, storage; exits 1 on a failure."""
    from raydapt.verbs import doctor as doctor_

    findings = doctor_.examine(_load(config, overrides))
    click.echo(doctor_.format_findings(findings))
    sys.exit(1 if any(finding.state == "failure" for finding in findings) else 0)


@cli.command()
@click.argument("config")
@_OVERRIDES
def pretrain(config: str, overrides: tuple[str, ...]) -> None:
    """Trains an embedded miniature model again: pretraining/jobs/clip.yaml, diffusion.yaml or captioner.yaml there."""
    from pretraining import captioner_pretraining, clip_pretraining, diffusion_pretraining

    others = {"captioner": captioner_pretraining.main, "diffusion": diffusion_pretraining.main}
    sys.exit(others.get(Path(config).stem, clip_pretraining.main)([config, *overrides]))


def main() -> None:
    """Runs the command line and turns a user's mistake into one sentence and exit code 2."""
    # Ray and its dependencies warn about each other's versions: nothing that a user of raydapt could mend.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        cli()
    except UserError as error:
        click.echo(f"raydapt: {error}", err=True)
        sys.exit(2)


def _load(config: str | None, overrides: tuple[str, ...]) -> Config:
    from raydapt.settings.config import load_config

    if config is not None and "=" in config:
        overrides, config = (config, *overrides), None
    return load_config(config, overrides)


def _announce(record: Run) -> None:
    metrics = json.loads(record.read_bytes("metrics.json"))
    before, after = metrics["zero_shot"]["top1"], metrics["adapted"]["top1"]
    if after is not None:
        click.echo(f"{metrics['name']}: zero-shot {before:.2f} %, adapted {after:.2f} % (top-1)")
    click.echo(f"Report: {record.folder.address('report.html')}")


if __name__ == "__main__":
    main()
