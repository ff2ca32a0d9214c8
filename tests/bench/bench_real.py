"""Every method that learns from features, on real CLIP features: ``make bench-real``.

    RAYDAPT_DATA=... python -m tests.bench.bench_real WORK --output docs/results/real-features.md

The features of WHU-RS19 under four encoders (``clip_features`` of RAYDAPT_DATA), as they are and as unlabelled sets
often are (`raydapt.data.shifts`). Every cell is a whole run with the method's own recipe. Runs are kept in WORK, so
that the command, given again, goes on where it was; ``--only`` makes the table of what is there.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from raydapt.data.shifts import shifted
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline

ENCODERS = {
    "RN50": "openai-clip-RN50",
    "ViT-B/32": "openai-clip-vit-B-32",
    "ViT-L/14": "openai-clip-vit-L-14",
    "GeoRSCLIP B/32": "georsclip-vit-B-32",
}
PROMPT = "a satellite photo of a"
FOREIGN = "none of these"
"""The label of images whose class has no name in a draw, as ``data.other_labels`` declares it."""
VARIANTS = {"as it is": 1, "5 present": 3, "10:1": 1, "50:1": 1, "30 % open set": 1, "5 a class": 1}
"""Draws of each variant; the set as it is has but one."""
METHODS: dict[str, list[str]] = {
    "transduct": [],
    "fair": [],
    "cpl": [],
    "fpl": [],
    "latteclip": ["latteclip.tune=residual", "latteclip.use_image_caption=false", "latteclip.use_batch_caption=false"],
    "fusion": ["fusion.classifiers=[]", "fusion.over=[{runs}/cpl,{runs}/fpl,{runs}/fair,{runs}/latteclip]"],
    "grip": [],
    "coreg": ["coreg.student=linear"],
    "ensemble": [],
    "wca": ["fair.crops=0"],
}
"""What a source of features makes necessary beside the recipe; `fusion` is over the cell's runs of four others."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: accuracies in percent, the seconds it took."""

    encoder: str
    variant: str
    draw: int
    method: str
    prompt: float
    """Top-1 of the single wording."""
    zero_shot: float
    """Top-1 of the mean of all wordings, which runs start from."""
    adapted: float
    """Top-1 of the adapted classifier alone."""
    kept: float
    """Top-1 of what the run answers: the guard may keep zero-shot or the mean."""
    mean_before: float
    mean_after: float
    mean_kept: float
    seconds: float
    fitted: float | None = None
    """Top-1 of the transductive answers, of methods that give some beside their classifier."""

    @property
    def change(self) -> float:
        """Points of top-1 against zero-shot, of the adapted classifier."""
        return self.adapted - self.zero_shot


def write_variant(encoder: str, variant: str, draw: int, folder: Path) -> tuple[Path, Path]:
    """The features of one draw, and the embeddings of the classes that are named for it."""
    source = Path(os.environ["RAYDAPT_DATA"]) / "clip_features" / f"{ENCODERS[encoder]}-whurs19.parquet"
    classes = pq.read_table(source.with_suffix(".classes.parquet"))
    table = pq.read_table(source)
    names = list(dict.fromkeys(classes["name"].to_pylist()))
    label_N = np.array([names.index(label) for label in table["label"].to_pylist()])
    chosen = shifted(variant, label_N, draw)
    named = [names[c] for c in chosen.class_K]
    labels = pa.array([named[k] if k >= 0 else FOREIGN for k in chosen.target_M.tolist()], pa.string())
    folder.mkdir(parents=True, exist_ok=True)
    rows = table.take(chosen.row_M)
    pq.write_table(pa.table({"id": rows["id"], "feature": rows["feature"], "label": labels}), folder / "x.parquet")
    kept = classes.filter(pc.is_in(classes["name"], pa.array(named)))
    pq.write_table(kept, folder / "x.classes.parquet")
    return folder / "x.parquet", folder / "x.classes.parquet"


def prompt_accuracy(features: Path, classes: Path) -> float:
    """Top-1 of the single wording, in percent of the images of a named class."""
    table, rows = pq.read_table(features), pq.read_table(classes)
    names = [name for name, wording in zip(*(rows[c].to_pylist() for c in ("name", "template")), strict=True)
             if wording == PROMPT]  # fmt: skip
    class_CD = np.stack(rows.filter(pc.equal(rows["template"], PROMPT))["feature"].to_pylist())
    feature_ND = np.stack(table["feature"].to_pylist())
    found_N = (feature_ND @ class_CD.T).argmax(1)
    right = [names[c] == label for c, label in zip(found_N, table["label"].to_pylist(), strict=True)
             if label != FOREIGN]  # fmt: skip
    return 100 * float(np.mean(right))


def cells(work: Path, methods: Sequence[str], variants: Sequence[str], *, only_there: bool) -> Iterator[Cell]:
    """The runs, made or found."""
    wanted = [(v, draw, e, m) for v in variants for m in methods for e in ENCODERS for draw in range(VARIANTS[v])]
    for variant, draw, encoder, method in tqdm(wanted, disable=only_there):
        place = "-".join(f"{encoder}-{variant}-{draw}".replace("/", "").replace(":", "to").split())
        folder = work / place
        metrics = folder / "runs" / method / "metrics.json"
        measured = metrics.parent / "bench_seconds"
        if not measured.exists():
            if only_there:
                continue
            features, classes = write_variant(encoder, variant, draw, folder)
            given = [
                f"data.source={features}",
                f"data.class_features={classes}",
                f"data.other_labels=[{FOREIGN}]",
                f"name={method}",
                "ray.progress=false",
            ]
            places = [f"runs={folder}/runs", f"store={folder}/store"]
            own = [setting.format(runs=f"{folder}/runs") for setting in METHODS[method]]
            started = time.monotonic()
            pipeline.run(load_config(None, [f"method={method}", *given, *places, *own]))
            measured.write_text(str(time.monotonic() - started))
        found = json.loads(metrics.read_text())
        yield Cell(
            encoder=encoder,
            variant=variant,
            draw=draw,
            method=method,
            prompt=prompt_accuracy(folder / "x.parquet", folder / "x.classes.parquet"),
            zero_shot=found["zero_shot"]["top1"],
            adapted=found["unguarded"]["top1"],
            kept=found["adapted"]["top1"],
            mean_before=found["zero_shot"]["mean_per_class"],
            mean_after=found["unguarded"]["mean_per_class"],
            mean_kept=found["adapted"]["mean_per_class"],
            seconds=float(measured.read_text()),
            fitted=found.get("transduct", {}).get("adapted", {}).get("top1"),
        )


def tables(found: Sequence[Cell]) -> str:
    """Markdown: the set as it is by encoder, then every variant by method."""
    rows = ["| method | " + " | ".join(ENCODERS) + " | mean | worst | mean per class | against one wording | seconds |"]
    rows.append("|---" * (len(ENCODERS) + 6) + "|")
    plain = [cell for cell in found if cell.variant == "as it is"]
    for method, group in _grouped(plain, "method").items():
        by_encoder = {cell.encoder: cell for cell in group}
        shown = [f"{c.adapted:.1f} ({c.change:+.1f})" if (c := by_encoder.get(e)) else "–" for e in ENCODERS]
        rows.append(f"| `{method}` | " + " | ".join([*shown, *_summary(group)]) + " |")
        together = {c.encoder: (c.fitted, c.fitted - c.zero_shot) for c in group if c.fitted is not None}
        if together:
            shown = [f"{together[e][0]:.1f} ({together[e][1]:+.1f})" if e in together else "–" for e in ENCODERS]
            changes = [change for _, change in together.values()]
            shown += [f"{np.mean(changes):+.1f}", f"{min(changes):+.1f}", "–", "–", "–"]
            rows.append(f"| `{method}`, transductive answers | " + " | ".join(shown) + " |")
    for kept in (False, True):
        rows += ["", "What the run answers:" if kept else "The adapted classifier alone:", ""]
        rows.append("| variant | zero-shot | " + " | ".join(f"`{method}`" for method in METHODS) + " |")
        rows.append("|---" * (len(METHODS) + 2) + "|")
        for variant, group in _grouped(found, "variant").items():
            by_method = _grouped(group, "method")
            start = np.mean([cell.zero_shot for cell in next(iter(by_method.values()))])
            shown = [_spread(by_method[method], kept=kept) if method in by_method else "–" for method in METHODS]
            rows.append(f"| {variant} | {start:.1f} | " + " | ".join(shown) + " |")
    return "\n".join(rows)


def _grouped(found: Sequence[Cell], key: str) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in found:
        groups[getattr(cell, key)].append(cell)
    return groups


def _summary(group: Sequence[Cell]) -> list[str]:
    change = [cell.change for cell in group]
    per_class = np.mean([cell.mean_after - cell.mean_before for cell in group])
    wording, seconds = np.mean([c.adapted - c.prompt for c in group]), np.mean([c.seconds for c in group])
    return [f"{np.mean(change):+.1f}", f"{min(change):+.1f}", f"{per_class:+.1f}", f"{wording:+.1f}", f"{seconds:.0f}"]


def _spread(group: Sequence[Cell], *, kept: bool) -> str:
    """Mean and worst change of top-1, mean change of the mean per class, and of how many runs."""
    change = [(cell.kept if kept else cell.adapted) - cell.zero_shot for cell in group]
    per_class = np.mean([(cell.mean_kept if kept else cell.mean_after) - cell.mean_before for cell in group])
    return f"{np.mean(change):+.1f} / {min(change):+.1f} / {per_class:+.1f} ({len(group)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--only", action="store_true")
    arguments = parser.parse_args()
    found = list(cells(arguments.work, arguments.methods, arguments.variants, only_there=arguments.only))
    text = tables(found)
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
