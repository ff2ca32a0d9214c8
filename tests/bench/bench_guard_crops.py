"""What the guard keeps of classifiers that answer from crops, on labelled image sets and their shifted variants.

    python -m tests.bench.bench_guard_crops WORK SETS/*.parquet SETS/further/*.parquet --methods fair wca

The sets are those of `pretraining.development_sets`, with the descriptions beside them. Each variant is drawn with seed
0, up to ``--most`` images, all of which are adapted to and tested on. Printed is the change of top-1 against zero-shot
in points, mean / worst of the sets, unguarded and of what the run answers. Runs are kept in WORK, so that the command,
given again, goes on where it was.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tqdm import tqdm

from raydapt.data.shifts import shifted
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from tests.bench.bench_features import markdown
from tests.bench.bench_real import FOREIGN

VARIANTS = ("as it is", "10:1", "half absent", "two classes")
OWN = {"fair": ("train.max_steps_per_round=200",), "wca": ("fair.crops=8",)}
"""Beside the recipes: lengths that many runs allow."""
Change = tuple[str, str, float, float]
"""Method, variant, points that the adapted classifier alone gains and those that the answer does."""


def write_variant(source: Path, variant: str, folder: Path, *, most: int) -> list[str]:
    """Draws a variant of a set; the settings that name it, its classes and their descriptions."""
    table, described = pq.read_table(source), yaml.load(source.with_suffix(".yaml").read_text(), yaml.BaseLoader)
    labels = table["label"].to_pylist()
    names = sorted(set(labels))
    drawn = shifted(variant, np.array([names.index(label) for label in labels]), 0)
    named = [names[c] for c in drawn.class_K]
    target_M = drawn.target_M[:most].tolist()
    folder.mkdir(parents=True, exist_ok=True)
    images = table["image"].take(pa.array(drawn.row_M[:most]))
    shown = pa.table({"image": images, "label": [named[k] if k >= 0 else FOREIGN for k in target_M]})
    pq.write_table(shown, folder / "images.parquet")
    descriptions = folder / "descriptions.yaml"
    descriptions.write_text(yaml.safe_dump({name: described[name] for name in named}, sort_keys=False))
    return [
        f"data.source={folder}/images.parquet",
        f"data.class_names={descriptions}",
        f"data.other_labels=[{FOREIGN}]",
        f"fair.descriptions={descriptions}",
    ]


def changes(work: Path, sources: Sequence[Path], methods: Sequence[str], *, most: int) -> Iterator[Change]:
    """Runs, made or found."""
    wanted = [(source, variant, method) for source in sources for variant in VARIANTS for method in methods]
    for source, variant, method in tqdm(wanted):
        folder = work / source.stem / variant.replace(" ", "-").replace(":", "to")
        metrics = folder / "runs" / method / "metrics.json"
        if not metrics.exists():
            where = [f"runs={folder}/runs", f"store={folder}/store", f"name={method}", "ray.progress=false"]
            given = write_variant(source, variant, folder, most=most)
            pipeline.run(load_config(None, [f"method={method}", *given, *where, *OWN[method]]))
        found = json.loads(metrics.read_text())
        before = found["zero_shot"]["top1"]
        yield method, variant, found["unguarded"]["top1"] - before, found["adapted"]["top1"] - before


def _cell(found: Sequence[float]) -> str:
    return f"{np.mean(found):+.1f} / {min(found):+.1f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", default=list(OWN), choices=list(OWN))
    parser.add_argument("--most", type=int, default=700)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for method, variant, alone, kept in changes(given.work, given.sources, given.methods, most=given.most):
        cells[method, "unguarded"][variant].append(alone)
        cells[method, "with the guard"][variant].append(kept)
    rows = [
        {"": f"`{method}`, {how}"} | {variant: _cell(found) for variant, found in by_variant.items()}
        for (method, how), by_variant in cells.items()
    ]
    print(markdown(rows))


if __name__ == "__main__":
    main()
