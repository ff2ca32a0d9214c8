"""What people go on with after a prediction: a labelled folder, CSV, tasks of Label Studio, a data set of FiftyOne."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from raydapt.errors import UserError
from raydapt.run.finished import open_run
from raydapt.run.labelled_set import as_csv, as_fiftyone, as_label_studio, files_of, require_new, rest_of, write_folder
from raydapt.run.origin import require_own_source
from raydapt.run.prediction import overridden
from raydapt.store.run_record import Run
from raydapt.verbs.review import image_rows
from raydapt.verbs.review_population import first_of_each
from raydapt.verbs.threshold import Chosen, in_words, threshold


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where files are written, by the options of the command line; None: not at all."""

    folder: str | None = None
    """For the taken images, one folder a class, each content once."""
    copy: bool = False
    """Copy image files instead of linking them."""
    csv: str | None = None
    """Folder for ``labels.csv`` and ``rest.csv``."""
    label_studio: str | None = None
    """Folder for ``tasks.json`` (the images that are not taken) and ``interface.xml``."""
    fiftyone: str | None = None
    """Folder for ``data.json`` and ``labels.json``, all images with their predictions."""

    @property
    def wanted(self) -> bool:
        """Whether anything is to be written."""
        return any((self.folder, self.csv, self.label_studio, self.fiftyone))

    def check(self) -> None:
        """Looks at the options before hours of work.

        Raises:
            UserError: For a folder that holds something, or an option that goes with another one.
        """
        if self.copy and self.folder is None:
            raise UserError("Option --copy goes with --folder FOLDER: give both, or none.")
        if self.folder is not None:
            require_new(Path(self.folder))


def after_prediction(
    run_folder: str,
    overrides: Sequence[str],
    places: Places,
    *,
    precision: float | None,
    table: str | None = None,
) -> list[str]:
    """What ``run``, ``predict`` and ``threshold`` do at their end: the choice in words, and the files.

    Args:
        run_folder: The finished run.
        overrides: Settings of other images; none for the run's own.
        places: Where to write.
        precision: As `threshold`.
        table: Path or URL of their predictions.

    Returns:
        Lines to print; none where neither files nor a precision are wanted.

    Raises:
        UserError: As `threshold` and `write_files`.
    """
    if not places.wanted and precision is None:
        return []
    predicted = None
    if table is not None:
        filesystem, path = url_to_fs(table)
        predicted = pq.read_table(path, filesystem=filesystem)
    chosen = threshold(run_folder, overrides, precision=precision, predicted=predicted)
    return [in_words(chosen.told), *write_files(run_folder, overrides, chosen, places)]


def write_files(run_folder: str, overrides: Sequence[str], chosen: Chosen, places: Places) -> list[str]:
    """Writes what is wanted and returns the places in words.

    Args:
        run_folder: The run.
        overrides: As `threshold` was given.
        chosen: What it returned.
        places: Where to write.

    Raises:
        UserError: For features without images where images are wanted, or places that cannot be written.
    """
    places.check()
    told, once = list[str](), first_of_each(chosen.table)
    if places.folder is not None or places.fiftyone is not None:
        told += _write_images(run_folder, overrides, chosen, once, places)
    if places.csv is not None:
        told += _write(places.csv, {"labels.csv": as_csv(chosen.table), "rest.csv": as_csv(rest_of(chosen.table))})
    if places.label_studio is not None:
        tasks, interface = as_label_studio(rest_of(once), chosen.classes, Run.at(run_folder).name)
        told += _write(places.label_studio, {"tasks.json": tasks, "interface.xml": interface})
    return told


def _write_images(
    run_folder: str, overrides: Sequence[str], chosen: Chosen, once: pa.Table, places: Places
) -> list[str]:
    """The files that need the images themselves."""
    record, config = open_run(run_folder)
    require_own_source(record, config, overrides)
    config, told = overridden(record, config, list(overrides)), list[str]()
    plan, row_of = image_rows(record, config, once["id"].to_pylist())
    if plan.source.width:
        option = "--folder" if places.folder is not None else "--fiftyone"
        raise UserError(f"Option {option} needs images, and this run has features in their place: use --csv.")
    if places.folder is not None:
        count = write_folder(once, Path(places.folder), plan.source, plan.config.data, row_of, copy=places.copy)
        told.append(f"{places.folder}: {count:,} images")
    if places.fiftyone is not None:
        files = files_of(plan.source)
        if not files:
            raise UserError(
                f"Option --fiftyone needs image files, which data.source={config.data.source!r} has not: use --folder, "
                "which FiftyOne reads as an ImageClassificationDirectoryTree."
            )
        data, labels = as_fiftyone(once, chosen.classes, {id_: files[row] for id_, row in row_of.items()})
        told += _write(places.fiftyone, {"data.json": data, "labels.json": labels})
    return told


def _write(folder: str, files: Mapping[str, bytes]) -> list[str]:
    """Writes files of a folder and returns their paths."""
    record = Run.at(folder)
    for name, content in files.items():
        record.write_bytes(name, content)
    return [record.file(name) for name in files]
