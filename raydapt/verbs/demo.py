"""The demonstration: handwritten digits through every method, offline, or real CLIP features through those that fit."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch

from raydapt.errors import UserError
from raydapt.methods.configuration import EverySetting, config_from_tree
from raydapt.methods.table import METHODS, recipe_file, spec_of
from raydapt.methods.without_images import decide_prompt
from raydapt.progress import silence_libraries
from raydapt.report.compare import format_table
from raydapt.run import pipeline
from raydapt.run.members import member_configs
from raydapt.run.reporting import compare_runs
from raydapt.settings.config import Config
from raydapt.settings.tree import merge_trees, read_yaml
from raydapt.store.folder import Folder
from raydapt.train.scoring import MEAN

_AT_ONCE, _EVERY_S = 2, 30.0
SETTINGS = Path(__file__).with_name("demo.yaml")
FEATURES = "openai-clip-vit-B-32-whurs19"
_NEXT = """
Your own images:  raydapt run {method} data.source=photos/ 'data.class_names=[oak, birch]' model.clip=ViT-B-32/openai
New images:       raydapt predict {folder} data.source=more_photos/"""
_NEXT_FEATURES = """
Your own features:  raydapt run {method} data.source=features.parquet data.class_features=classes.parquet
                    (raydapt features data.source=photos/ 'data.class_names=[oak, birch]' --output=FOLDER writes both)
New features:       raydapt predict {folder} data.source=more.parquet"""


def demo(overrides: list[str], *, features: bool = False) -> list[Folder]:
    """Runs ``demo.yaml`` over every method's own recipe, prints the comparison, returns the run folders.

    Args:
        overrides: ``key=value`` settings on top.
        features: CLIP features of WHU-RS19 (``RAYDAPT_DATA``) in place of the digits, through the methods that features
            and class embeddings are enough for.

    Raises:
        UserError: For a setting that is not valid, or when the features are not there.
    """
    given = [*features_settings(), *overrides] if features else overrides
    configs = [demo_config(method, given) for method in METHODS]
    if features:
        configs = [config for config in configs if takes_features(config)]
    folders = _run_all(configs)
    click.echo()
    click.echo(format_table(compare_runs(folders)))
    best = best_without_labels([folder.read_json("metrics.json") for folder in folders])
    chosen = len(folders) - 1 if best is None else best
    why = "the last one" if best is None else "the best by scores that read no label"
    click.echo(f"\nReport of {why}, {configs[chosen].method}: {folders[chosen].address('report.html')}")
    click.echo(
        (_NEXT_FEATURES if features else _NEXT).format(method=configs[chosen].method, folder=folders[chosen].path)
    )
    return folders


def _run_all(configs: Sequence[Config]) -> list[Folder]:
    """Runs them two at a time, each on half of the cores: most of a small run is the work of one core."""
    processes = min(_AT_ONCE, os.cpu_count() or 1)
    threads = max(1, (os.cpu_count() or 1) // processes)
    started, done = time.monotonic(), 0
    click.echo(f"{len(configs)} methods, {processes} at a time; {configs[0].method} first, whose features all read …")
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_prepare, initargs=(threads,)) as pool:
        first = pool.submit(_run_quietly, configs[0])  # makes what all read
        wait([first])
        # A run that is made of others begins when theirs have ended: two processes must not make the same one.
        needed_of = {config.method: _needed(config) for config in configs[1:]}
        begun = {first: configs[0]}
        begun |= {pool.submit(_run_quietly, one): one for one in configs[1:] if not needed_of[one.method]}
        try:
            for finished in _as_they_end(begun, processes):
                folder, done = finished.result(), done + 1
                line, seconds = _line(folder.read_json("metrics.json")), time.monotonic() - started
                click.echo(f"[{done}/{len(configs)}] {begun[finished].method}: {line} ({seconds:.0f} s)")
                going = {config.method for future, config in begun.items() if not future.done()}
                there = {config.method for config in begun.values()}
                ready = [one for one in configs if one.method not in there and not needed_of[one.method] & going]
                begun |= {pool.submit(_run_quietly, one): one for one in ready}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    folder_of = {config.method: future.result() for future, config in begun.items()}
    return [folder_of[config.method] for config in configs]


def _needed(config: Config) -> set[str]:
    """The methods of the runs that a run is made of."""
    return {member.method for member in member_configs(config)}


def _as_they_end(begun: Mapping[Future[Folder], Config], at_once: int) -> Iterator[Future[Folder]]:
    """The runs in the order in which they end, those that are begun meanwhile too; says at times which ones go on."""
    ended: set[Future[Folder]] = set()
    while left := [one for one in begun if one not in ended]:
        now, _ = wait(left, timeout=_EVERY_S, return_when=FIRST_COMPLETED)
        if not now:
            names = " and ".join(begun[one].method for one in left[:at_once])  # they are begun in their order
            click.echo(f"  at {names} …")
        for one in left:
            if one in now:
                ended.add(one)
                yield one


def _line(metrics: Mapping[str, Any]) -> str:
    before, after = (metrics[name]["top1"] for name in ("zero_shot", "adapted"))
    answer = metrics.get("answer", "adapted")
    kept = "" if answer == "adapted" else f", since the guard keeps {answer.replace('mean', 'the mean')}"
    return f"{before:.1f} -> {after:.1f} %{kept}"


def _prepare(threads: int) -> None:
    silence_libraries()
    logging.getLogger("raydapt").setLevel(logging.ERROR)  # what two runs say at once stands in their reports
    torch.set_num_threads(threads)


def _run_quietly(config: Config) -> Folder:
    return pipeline.run(replace(config, ray=replace(config.ray, progress=False))).folder


def best_without_labels(metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """Which run has the highest mean of the decisive label-free scores (`raydapt.train.scoring`); None without any."""
    scored = [((run.get("scores") or {}).get(MEAN), place) for place, run in enumerate(metrics)]
    known = [(score, -place) for score, place in scored if score is not None]
    return -max(known)[1] if known else None


def demo_config(method: str, overrides: Sequence[str] = ()) -> Config:
    """The demonstration's settings of one method: over its recipe, under its own ``demo.yaml`` where it has one.

    What that file says of ``data``, such as wordings, is for the images of the demonstration alone.
    """
    file, shared = recipe_file(method).with_name("demo.yaml"), read_yaml(SETTINGS)
    own = read_yaml(file) if file.exists() else {}

    def laid_over(own: dict[str, Any]) -> Config:
        trees = [shared, {"method": method}, own]
        return config_from_tree(merge_trees(*trees, overrides=overrides, kind=EverySetting))

    config = laid_over({name: group for name, group in own.items() if name != "data"})
    return laid_over(own) if config.data.source == shared["data"]["source"] else config


def features_settings() -> list[str]:
    """The settings that put CLIP's features of WHU-RS19, 1,005 views from above, in the place of the digits.

    Raises:
        UserError: When ``RAYDAPT_DATA`` does not hold them.
    """
    folder = Path(os.environ.get("RAYDAPT_DATA") or ".") / "clip_features"
    source, classes = folder / f"{FEATURES}.parquet", folder / f"{FEATURES}.classes.parquet"
    if not (source.is_file() and classes.is_file()):
        raise UserError(
            f"Option --features needs {FEATURES}.parquet and {FEATURES}.classes.parquet in the folder clip_features of "
            "RAYDAPT_DATA: set that variable, or write features of your own with 'raydapt features … --output=FOLDER'."
        )
    return [f"data.source={source}", f"data.class_features={classes}"]


def takes_features(config: Config) -> bool:
    """Whether features and class embeddings are enough for a method."""
    return not spec_of(config.method).unfit_for_features(decide_prompt(config), text_tower=False)
