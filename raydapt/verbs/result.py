"""A finished run and a finished sweep as Python objects, with a view for notebooks."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from raydapt.errors import UserError
from raydapt.report.run_files import open_run
from raydapt.store.folder import Folder
from raydapt.verbs.call import overrides_of
from raydapt.verbs.images import write_images

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class FinishedResult:
    """A finished run. Its files are read when they are asked for.

    Attributes:
        folder: The run's folder, a path or URL.
    """

    def __init__(self, folder: str | Path) -> None:
        """Opens the folder of a run.

        Raises:
            UserError: If it is no finished run.
        """
        self._folder = open_run(folder)
        if not self._folder.exists("metrics.json"):
            raise UserError(f"Folder {str(folder)!r} is not a finished run: give a folder such as runs/NAME.")
        self.folder = self._folder.address("").rstrip("/")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``: accuracies in percent (null without labels), pseudo-labels, times in seconds."""
        metrics: dict[str, Any] = self._folder.read_json("metrics.json")
        return metrics

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per test image: id, path, split, label, class, zero_shot, predicted, and their confidences (0-1)."""
        return pd.read_parquet(io.BytesIO(self._folder.read("predictions.parquet")))

    @property
    def report(self) -> str:
        """The path or URL of ``report.html``."""
        return self._folder.address("report.html")

    def predict(
        self,
        images: "str | Path | Sequence[str | Path | Image | np.ndarray]",
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predicts other images with what the run learned.

        Args:
            images: A source, such as a folder or a URL; or a list of image files, PIL images or uint8 arrays [H, W, 3].
            settings: Dotted settings of ``data``, ``features`` and ``ray``, as `raydapt predict` takes them.

        Returns:
            One row per image, with the columns of `predictions` and ``error``, which tells why an image has no answer.
            Of a list, the index is the position in it, and the path is that of the image file (None for an image from
            memory).

        Raises:
            UserError: For images that cannot be read, or a setting that belongs to the run.
        """
        from raydapt.run.prediction import predictions_of

        overrides = overrides_of(settings)
        if isinstance(images, str | Path):
            return predictions_of(self.folder, overrides_of({"data.source": str(images)}) + overrides).to_pandas()
        with tempfile.TemporaryDirectory() as folder:
            given = write_images(images, Path(folder))
            table = predictions_of(self.folder, overrides_of({"data.source": folder}) + overrides).to_pandas()
        table.index = pd.Index([int(Path(path).stem) for path in table["path"]], name="image")
        table["path"] = pd.Series([given[position] for position in table.index], index=table.index, dtype=object)
        return table.sort_index()

    def labelled(
        self, *, precision: float | None = 0.95, folder: str | Path | None = None, copy: bool = False
    ) -> pd.DataFrame:
        """Which of the run's answers are sure enough, and perhaps the labelled folder, as ``raydapt threshold``.

        Args:
            precision: The share of right ones that is wanted among those taken, 0 to 1; None takes every answer.
            folder: A new folder for the images taken, one folder a class; None: none is written.
            copy: Copies of image files in place of links.

        Returns:
            One row per image: id, path, class, probability (that the class is right), taken, by (``run`` or
            ``person``).

        Raises:
            UserError: For a folder that holds something, or a run of features without images where one is wanted.
        """
        from raydapt.verbs.labelled_files import Places, write_files
        from raydapt.verbs.threshold import threshold

        places = Places(folder=None if folder is None else str(folder), copy=copy)
        places.check()
        chosen = threshold(self.folder, precision=precision)
        write_files(self.folder, (), chosen, places)
        table: pd.DataFrame = chosen.table.to_pandas()
        return table

    def __repr__(self) -> str:
        return f"<run {self.metrics['name']}: {self._accuracy()}>"

    def _repr_html_(self) -> str:
        """The view of a notebook."""
        metrics = self.metrics
        rows = {
            "method": metrics["method"],
            "images": metrics["dataset"],
            "result": self._accuracy(),
            "folder": self.folder,
            "report": self.report,
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
        return f"<table><caption>{escape(metrics['name'])}</caption>{cells}</table>"

    def _accuracy(self) -> str:
        before, after = self.metrics["zero_shot"]["top1"], self.metrics["adapted"]["top1"]
        if after is None:
            return "no labels to measure accuracy by"
        return f"zero-shot {before:.2f} %, adapted {after:.2f} % (top-1)"


class FinishedSweep:
    """A finished sweep of settings.

    Attributes:
        folder: Its folder, a path or URL.
        chosen: Path or URL of the job file of the best trial, for ``raydapt run``.
        report: Path or URL of its report.
    """

    def __init__(self, folder: Folder) -> None:
        """Opens the folder of a sweep that has ended."""
        self._folder = folder
        self.folder = folder.address("").rstrip("/")
        self.chosen, self.report = folder.address("chosen.yaml"), folder.address("report.html")

    @cached_property
    def result(self) -> dict[str, Any]:
        """``tune.json``: the space, every trial with its label-free scores, and the ranking."""
        result: dict[str, Any] = self._folder.read_json("tune.json")
        return result

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the best trial sets differently from the method's recipe, as nested settings."""
        tree: dict[str, Any] = yaml.safe_load(self._folder.read("chosen.yaml"))
        return tree

    def __repr__(self) -> str:
        return f"<sweep {self.folder}>"
