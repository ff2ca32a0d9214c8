"""What the guard keeps of finished runs, without learning them again: the adapted model, the mean, and the kept answer.

    python -m tests.bench.bench_kept WORK

WORK is that of ``tests.bench.bench_real``: runs on features, whose unlabelled images are also measured. Prints changes
of top-1 against zero-shot by method and variant, mean / worst.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from raydapt.artefacts.features import load_features
from raydapt.methods.guard import Verdict
from raydapt.methods.table import spec_of
from raydapt.run.finished import open_run
from raydapt.run.known_labels import read_known_labels
from raydapt.run.making import artefacts_of, make_artefacts
from raydapt.run.plan import FEATURES, make_plan
from raydapt.run.prediction import classifiers_of_run

ANSWERS: tuple[Verdict, ...] = ("adapted", "mean of both")


def changes(folder: Path) -> dict[str, float] | None:
    """Changes of one run in points; None for a method that learns nothing."""
    run, config = open_run(str(folder))
    if not spec_of(config.method).learns:
        return None
    plan = make_plan(config)
    artefacts = artefacts_of(make_artefacts(plan, to_learn=False))
    table = load_features(artefacts[FEATURES], plan.source)
    both = classifiers_of_run(run, plan, artefacts, table)
    row_T = table.valid_N.nonzero().flatten()
    class_T = read_known_labels(plan, artefacts[FEATURES]).class_N[row_T]
    right = {a: _top1(both.answer(a, row_T).class_T, class_T) for a in ("zero-shot", *ANSWERS)}
    right["guarded"] = right[both.judged(row_T, table.feature_ND).verdict]
    return {name: right[name] - right["zero-shot"] for name in (*ANSWERS, "guarded")}


def _top1(predicted_T: torch.Tensor, class_T: torch.Tensor) -> float:
    known_T = class_T >= 0
    return 100 * float((predicted_T == class_T)[known_T].double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for metrics in sorted(parser.parse_args().work.glob("*/runs/*/metrics.json")):
        variant = metrics.parents[2].name.rsplit("-", 1)[0]
        for encoder in ("RN50", "ViT-B32", "ViT-L14", "GeoRSCLIP-B32"):
            variant = variant.removeprefix(f"{encoder}-")
        if (changed := changes(metrics.parent)) is not None:
            found[metrics.parent.name, variant].append(changed)
    print("| method | variant | runs | adapted | mean of both | guarded |\n|---|---|---|---|---|---|")
    for (method, variant), rows in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        columns = [[row[name] for row in rows] for name in (*ANSWERS, "guarded")]
        cells = " | ".join(f"{np.mean(column):+.1f} / {min(column):+.1f}" for column in columns)
        print(f"| `{method}` | {variant.replace('-', ' ')} | {len(rows)} | {cells} |")


if __name__ == "__main__":
    main()
