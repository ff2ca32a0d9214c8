"""From class names to descriptions: an instruct language model is asked, its answers are cleaned and written down."""

from pathlib import Path

import yaml

from raydapt.artefacts.descriptions import load_descriptions
from raydapt.data.classes import resolve_classes
from raydapt.data.sources import resolve_source
from raydapt.errors import UserError
from raydapt.models.language import who_answers
from raydapt.settings.config import Config
from raydapt.stages.describe import DescribeJob, describe_stage
from raydapt.store.artefact import Artefact, Store


def describe_job(config: Config, class_names: tuple[str, ...]) -> DescribeJob:
    """What is asked about the classes; loads no model.

    Raises:
        UserError: For a model that is none.
    """
    settings = config.describe
    address, identity = who_answers(settings, setting="describe")
    return DescribeJob(class_names=class_names, settings=settings, address=address, identity=identity)


def describe(config: Config, *, output: str | None = None) -> str:
    """Writes descriptions of the classes of a job, as ``fair.descriptions`` reads them.

    Args:
        config: The settings.
        output: The YAML file; None writes ``descriptions.yaml`` into the artefact's folder.

    Returns:
        The file.

    Raises:
        UserError: For classes of which no answer can be used, and for a model or a source that cannot work.
    """
    found, artefact = descriptions(config)
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)
    if output is None:
        artefact.folder.write("descriptions.yaml", text.encode())
        return f"{artefact.folder.path}/descriptions.yaml"
    file = Path(output).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


def descriptions(config: Config) -> tuple[dict[str, list[str]], Artefact]:
    """The usable descriptions of every class, and where the answers lie. Raises as `describe`."""
    source = resolve_source(config.data.source, rows_per_part=config.features.rows_per_part, limit=config.data.limit)
    classes = resolve_classes(config.data, source)
    result = describe_stage(describe_job(config, classes.names), ray_settings=config.ray, store=Store(config.store))
    found = load_descriptions(result.artefact, config.describe)
    empty = [name for name, texts in found.items() if not texts]
    if empty:
        raise UserError(
            f"Setting describe.model={config.describe.model!r} gave no usable description of {len(empty)} classes, "
            f"such as {empty[0]!r}: raise describe.answers or describe.max_tokens, or give another model."
        )
    return found, result.artefact
