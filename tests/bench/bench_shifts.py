"""Transduction on sets as they are: change of top-1 against zero-shot on shifted variants of labelled feature sets.

``python -m tests.bench.bench_shifts`` prints a Markdown table for the CLIP features of WHU-RS19 (``RAYDAPT_DATA``), or
with ``--sets clip-like`` for the generated development sets. ``--growth 10000 100000`` prints time and memory instead.
"""

import argparse
import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from raydapt.data.shifts import VARIANTS, shifted
from raydapt.methods.guard import judge
from raydapt.methods.open_set import detect, familiarity
from raydapt.methods.transduct.fit import TransductFit, fit
from raydapt.methods.transduct.neighbours import nearest
from raydapt.methods.transduct.settings import TransductSettings, published
from tests.clip_like import SETS, ClipLike, FeatureSet, clip_like

SCALE = 100.0
METHODS: dict[str, TransductSettings] = {
    "transduct": TransductSettings(),
    "spherical": TransductSettings(rule="spherical", temper=10.0, anchor_images=2.0),
    "transclip": published("transclip"),
    "stata": published("stata"),
}


def whurs19() -> Iterator[tuple[str, FeatureSet]]:
    """Four encoders' features of the same 1,005 images, with the mean of 106 wordings as class embeddings."""
    for path in sorted((Path(os.environ["RAYDAPT_DATA"]) / "clip_features").glob("*-whurs19.parquet")):
        table = pq.read_table(path)
        classes = pq.read_table(path.with_suffix(".classes.parquet"))
        classes = classes.filter(pc.equal(classes["template"], "mean of templates"))
        names = classes["name"].to_pylist()
        label_N = torch.tensor([names.index(label) for label in table["label"].to_pylist()])
        yield (
            path.stem.removesuffix("-whurs19"),
            FeatureSet(
                feature_ND=_unit(table["feature"]), label_N=label_N, text_CD=_unit(classes["feature"]), scale=SCALE
            ),
        )


def _unit(column: object) -> Tensor:
    return F.normalize(torch.tensor(np.stack(column.to_pylist()), dtype=torch.float32), dim=1)  # type: ignore[attr-defined]


def generated() -> Iterator[tuple[str, FeatureSet]]:
    for name, kind in SETS.items():
        yield name, clip_like(kind, 0)


def accuracy(score_NC: Tensor, target_N: Tensor) -> float:
    """Percent right of the images of a named class."""
    known_N = target_N >= 0
    return 100 * float((score_NC.argmax(dim=1) == target_N)[known_N].double().mean())


def distance(share_C: Tensor, target_N: Tensor) -> float:
    """Total variation distance of shares to the true ones of the images of a named class."""
    truth_C = torch.bincount(target_N[target_N >= 0], minlength=len(share_C)).double()
    return float((share_C.double() - truth_C / truth_C.sum()).abs().sum()) / 2


def measure(sets: Callable[[], Iterator[tuple[str, FeatureSet]]], draws: int) -> dict[str, dict[str, list[float]]]:
    """Changes against zero-shot by variant and column."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _, features in sets():
        label_N = features.label_N.numpy()
        for variant in VARIANTS:
            for seed in range(draws):
                chosen = shifted(variant, label_N, seed)
                feature_MD = features.feature_ND[torch.from_numpy(chosen.row_M)]
                text_KD = features.text_CD[torch.from_numpy(chosen.class_K)]
                target_M = torch.from_numpy(chosen.target_M)
                _one(found[variant], feature_MD, text_KD, features.scale, target_M)
    return found


def _one(row: dict[str, list[float]], feature_MD: Tensor, text_KD: Tensor, scale: float, target_M: Tensor) -> None:
    zero_MK = scale * feature_MD @ text_KD.T
    zero = accuracy(zero_MK, target_M)
    row["zero-shot"].append(zero)
    for name, settings in METHODS.items():
        found = fit(feature_MD, text_KD, scale, settings)
        row[name].append(accuracy(found.probabilities(), target_M) - zero)
        if name == "transduct":
            row["mean of both"].append(accuracy(found.probabilities() + zero_MK.softmax(dim=1), target_M) - zero)
            familiar_M = familiarity(feature_MD, text_KD, found.probabilities().argmax(dim=1), nearest(feature_MD, 10))
            told = detect(familiar_M)
            row["suspected"].append(told.suspected)
            if (target_M < 0).any():
                row["AUROC"].append(roc_auc_score((target_M >= 0).numpy(), familiar_M.numpy()))
                largest_M = zero_MK.max(dim=1).values
                row["AUROC of the largest cosine"].append(roc_auc_score((target_M >= 0).numpy(), largest_M.numpy()))
            guarded = judge(zero_MK.softmax(dim=1), found.probabilities(), feature_MD)
            answer_MK = guarded.probabilities(zero_MK.softmax(dim=1), found.probabilities())
            row["guarded"].append(accuracy(answer_MK, target_M) - zero)
            row["prior"].append(distance(found.log_prior_C.exp(), target_M))
            row["uniform"].append(distance(torch.full((len(text_KD),), 1 / len(text_KD)), target_M))
    half = len(feature_MD) // 2
    found = fit(feature_MD[:half], text_KD, scale)
    zero = accuracy(zero_MK[half:], target_M[half:])
    row["inductive"].append(accuracy(inductive(found, feature_MD[half:], zero_MK[half:]), target_M[half:]) - zero)


def inductive(found: TransductFit, feature_MD: Tensor, base_MK: Tensor) -> Tensor:
    """Scores of images that were not fitted."""
    return found.text_strength * base_MK + feature_MD @ found.head.weight_CD.T + found.head.bias_C


def report(found: dict[str, dict[str, list[float]]]) -> None:
    """A Markdown table: mean / worst change, and the distances of the class prior to the truth."""
    columns = ["transduct", "guarded", "inductive", "mean of both", "spherical", "transclip", "stata"]
    print(
        "| variant | zero-shot | "
        + " | ".join(columns)
        + " | prior found / uniform, distance to truth | open set suspected |"
    )
    print("|" + "---|" * (len(columns) + 4))
    for variant, row in found.items():
        open_set = f"{np.mean(row['suspected']):.0%}" + (f", AUROC {np.mean(row['AUROC']):.2f}" if row["AUROC"] else "")
        if row["AUROC"]:
            open_set += f" (largest cosine {np.mean(row['AUROC of the largest cosine']):.2f})"
        cells = [f"{np.mean(row[c]):+.1f} / {min(row[c]):+.1f}" for c in columns]
        prior = f"{np.mean(row['prior']):.2f} / {np.mean(row['uniform']):.2f}"
        print(f"| {variant} | {np.mean(row['zero-shot']):.1f} | " + " | ".join(cells) + f" | {prior} | {open_set} |")


def growth(sizes: list[int], n_classes: int) -> None:
    """Seconds and peak memory of a fit with neighbours, on generated features of width 512."""
    print("| images | classes | neighbours s | rounds s | peak GB |\n|---|---|---|---|---|")
    for size in sizes:
        kind = ClipLike(n_classes=n_classes, per_class=20, zero_shot=0.6)
        drawn = clip_like(kind, 0)
        times = -(-size // len(drawn.feature_ND))
        noise = torch.Generator().manual_seed(0)
        feature_ND = drawn.feature_ND.repeat(times, 1)[:size]
        feature_ND += 0.02 * torch.randn(feature_ND.shape, generator=noise)
        feature_ND = F.normalize(feature_ND, dim=1)
        start = time.perf_counter()
        neighbours = nearest(feature_ND, TransductSettings().neighbours)
        middle = time.perf_counter()
        fit(feature_ND, drawn.text_CD, SCALE, neighbours=neighbours)
        end = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {size:,} | {n_classes:,} | {middle - start:.1f} | {end - middle:.1f} | {peak:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", choices=("whurs19", "clip-like"), default="whurs19")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="*")
    parser.add_argument("--classes", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.growth:
        growth(arguments.growth, arguments.classes)
    else:
        report(measure(whurs19 if arguments.sets == "whurs19" else generated, arguments.draws))


if __name__ == "__main__":
    main()
