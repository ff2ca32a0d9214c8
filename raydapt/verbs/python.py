"""Runs, and what is done with them, as Python functions, which ``import raydapt`` offers.

Settings are checked before anything heavy is imported.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from raydapt.verbs.call import config_of, overrides_of
from raydapt.verbs.result import FinishedResult, FinishedSweep

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Paradigm = Literal["ul", "ssl", "trzsl"]


def run(
    source: str | Path,
    *,
    class_names: Sequence[str] | str | None = None,
    method: str = "cpl",
    clip: str = "mini",
    templates: Sequence[str] | None = None,
    paradigm: Paradigm = "ul",
    seed: int = 0,
    name: str = "auto",
    runs: str | Path = "runs",
    store: str | Path = "store",
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> FinishedResult:
    """Adapts a CLIP model to images; the same call again resumes, or opens the finished run.

    Args:
        source: Class folders, a flat folder, Parquet, WebDataset tars, a URL, or a named set.
        class_names: The classes, or a file of them (text with one a line, YAML, JSON); None: from the named set or the
            folders.
        method: The name of a method, such as ``cpl``; its recipe gives what is not given here.
        clip: ``mini``, a folder in open_clip's layout, ``hf-hub:…``, or ``ARCHITECTURE/PRETRAINED``.
        templates: Prompts with one ``{}`` each; None: those of the named set, or plain ones.
        paradigm: ``ul`` no labels, ``ssl`` a few per class, ``trzsl`` those of the seen classes.
        seed: Of everything random in learning.
        name: The run's folder below `runs`; ``auto`` makes one from the settings.
        runs: Where run folders lie, a path or URL.
        store: Where artefacts lie, such as features; shared by all runs.
        settings: Any other settings by their dotted keys, such as ``{"train.learning_rate": 0.1}``; they come last.
        overwrite: Learn and evaluate anew; stored artefacts are reused.

    Returns:
        The finished run.

    Raises:
        UserError: For a mistake in the settings or the data.
    """
    given = {"data.class_names": class_names, "data.templates": templates, "data.paradigm": paradigm, "seed": seed}
    places = {"name": name, "runs": runs, "store": store}
    config = config_of(settings, source, {"method": method, "model.clip": clip, **given, **places})
    from raydapt.run import pipeline

    record = pipeline.run(config, overwrite=overwrite)
    return FinishedResult(record.folder.address("").rstrip("/"))


def load(folder: str | Path) -> FinishedResult:
    """Opens a finished run.

    Args:
        folder: Such as ``runs/NAME``; a path or URL.

    Raises:
        UserError: If it is no finished run.
    """
    return FinishedResult(folder)


def predict(
    folder: str | Path,
    images: "str | Path | Sequence[str | Path | Image | np.ndarray]",
    *,
    settings: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Predicts images with a finished run: `FinishedResult.predict` of ``load(folder)``.

    Args:
        folder: The run's folder.
        images: A source, or a list of image files, PIL images or uint8 arrays [H, W, 3].
        settings: Dotted settings of ``data``, ``features`` and ``ray``.

    Raises:
        UserError: For a folder that is no run, or images that cannot be read.
    """
    return FinishedResult(folder).predict(images, settings=settings)


def evaluate(
    folder: str | Path, source: str | Path | None = None, *, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Measures a finished run on labelled images of its classes.

    Args:
        folder: The run's folder.
        source: Labelled images; None: the test images of the run's own set.
        settings: Dotted settings of ``data``, ``features`` and ``ray``.

    Returns:
        run, dataset, images (their number), and the accuracies zero_shot and adapted, in percent.

    Raises:
        UserError: When no image has a label that is one of the classes.
    """
    result = FinishedResult(folder)
    given = {} if source is None else {"data.source": str(source)}
    from raydapt.run.prediction import measure

    return measure(result.folder, overrides_of({**given, **(settings or {})}))[0]


def compare(folders: Iterable[str | Path | FinishedResult]) -> pd.DataFrame:
    """Finished runs side by side: one row per dataset, paradigm and method with its settings.

    Args:
        folders: Run folders, or what `run` and `load` gave.

    Returns:
        Accuracies in percent, mean and deviation over seeds.

    Raises:
        UserError: For a folder that is no finished run.
    """
    from raydapt.run.reporting import compare_runs

    return compare_runs([one.folder if isinstance(one, FinishedResult) else one for one in folders])


def tune(
    source: str | Path,
    *,
    class_names: Sequence[str] | str | None = None,
    method: str = "cpl",
    clip: str = "mini",
    space: Mapping[str, Any] | None = None,
    trials: int | None = None,
    runs: str | Path = "runs",
    store: str | Path = "store",
    settings: Mapping[str, Any] | None = None,
) -> FinishedSweep:
    """Searches settings without labels; the same call again goes on where it was.

    Args:
        source: As for `run`.
        class_names: As for `run`.
        method: The method whose settings are searched.
        clip: As for `run`.
        space: Dotted setting to ``{"uniform": [low, high]}``, ``loguniform``, ``integer`` or ``choice``; None: the
            space that comes with raydapt.
        trials: How many; None: 24.
        runs: Where the sweep's folder lies.
        store: Where artefacts lie.
        settings: Any other settings by their dotted keys.

    Returns:
        The finished sweep, with the chosen settings and a report.

    Raises:
        UserError: For a space that cannot work, or when no trial finished.
    """
    given = {"data.class_names": class_names, "method": method, "model.clip": clip, "tune.trials": trials}
    config = config_of(settings, source, {**given, "space": space, "runs": runs, "store": store}, recipe="tune")
    from raydapt.tune import sweep

    return FinishedSweep(sweep.run_sweep(config).folder)


def export(folder: str | Path, output: str | Path) -> str:
    """Writes the adapted model of a finished run as ONNX and safetensors, with a model card.

    Args:
        folder: The run's folder.
        output: The folder to write to, a path or URL.

    Returns:
        The folder's path.

    Raises:
        UserError: For a method that cannot be exported, or without the packages of the extra ``export``.
    """
    result = FinishedResult(folder)
    from raydapt.verbs import export as exporting

    return exporting.export(result.folder, str(output))
