"""TensorBoard events of a run, written once from its log: a resumed run leaves no repeated steps."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raydapt.store.run_record import Run


def write_events(run: Run, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes loss, learning rate and images/s of every log line into the run folder.

    Args:
        run: The run.
        lines: The log lines of the training (see `raydapt.train.checkpoint.TrainState.lines`).
    """
    from torch.utils.tensorboard import SummaryWriter  # it imports for a second

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            step = before = 0
            for line in lines:
                # Steps count from zero in every round.
                step += int(line["step"]) - before if line["step"] > before else int(line["step"])
                before = int(line["step"])
                for name in ("loss", "learning_rate", "images_per_s"):
                    writer.add_scalar(f"train/{name}", line[name], step)
        for file in Path(folder).iterdir():
            run.write_bytes(f"tensorboard/{file.name}", file.read_bytes())
