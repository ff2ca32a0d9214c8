"""Time and memory of choosing pseudo-labels, by the number of images and of classes.

``python -m tests.bench.bench_pseudo_labels`` prints the table: processor seconds, and how much the largest memory of
the process grew, for CPL's candidate sets with their selection and targets, GRIP's leader boards, and FPL's best
images of every class. Beside them the size of the matrix of probabilities that is not held. Features are those of a
mixture of width 64; each size is a process of its own.

Legend: U images, C classes, D width.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from raydapt.methods.cpl.rules import cpl_candidates, cpl_select, cpl_targets
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks, softmax_blocks
from raydapt.methods.prompting.pseudo_labels import leader_board, top_k_per_class
from tests.bench.bench_commit import peak_mb
from tests.bench.bench_features import markdown

IMAGES, CLASSES = (10_000, 100_000, 1_000_000), (100, 1000)
WIDTH, SCALE, ALPHA, BETA, SHOTS = 64, 30.0, 0.6, 0.99, 16


def cpl(probability_UC: ProbabilityBlocks) -> int:
    """A first round of CPL with half of the images; how many were selected."""
    n_images, n_classes = probability_UC.shape
    candidates = cpl_candidates(probability_UC, ALPHA, BETA)
    selection = cpl_select(candidates, n_images // (2 * n_classes), n_classes)
    return int(cpl_targets(candidates, selection.row_M, n_classes, soft=True).shape[0])


def boards(probability_UC: ProbabilityBlocks) -> int:
    """A fifth round of ten of GRIP; how many were selected."""
    n_images, n_classes = probability_UC.shape
    return len(leader_board(probability_UC, n_images // (2 * n_classes)).row_M)


def best(probability_UC: ProbabilityBlocks) -> int:
    """FPL's sixteen images a class; how many that are."""
    return len(top_k_per_class(probability_UC, SHOTS).row_M)


RULES: dict[str, Callable[[ProbabilityBlocks], int]] = {"cpl": cpl, "grip": boards, "fpl": best}


def measure(n_images: int, n_classes: int, rule: str) -> dict[str, Any]:
    """One line of the table, of this process."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    centre_CD = torch.randn(n_classes, WIDTH, generator=random)
    class_U = torch.randint(n_classes, (n_images,), generator=random)
    feature_UD = torch.randn(n_images, WIDTH, generator=random).mul_(2)
    for rows in torch.split(torch.arange(n_images), 100_000):
        feature_UD[rows] = F.normalize(feature_UD[rows] + centre_CD[class_U[rows]], dim=1)
    text_CD = F.normalize(centre_CD + torch.randn(centre_CD.shape, generator=random), dim=1)
    blocks = softmax_blocks(n_images, feature_UD.__getitem__, text_CD, SCALE, torch.arange(n_classes))
    before_mb, started = peak_mb(), time.process_time()
    selected = RULES[rule](blocks)
    return {
        "images": f"{n_images:,}",
        "classes": f"{n_classes:,}",
        "rule": rule,
        "processor s": round(time.process_time() - started, 1),
        "more memory, MB": round(peak_mb() - before_mb),
        "the matrix would take, MB": round(4 * n_images * n_classes / 1e6),
        "selected": f"{selected:,}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, each line of which a process of its own measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--rule", choices=RULES, help="measure the first size alone, in this process")
    given = parser.parse_args(arguments)
    if given.rule:
        print(json.dumps(measure(given.images[0], given.classes[0], given.rule)))
        return
    table = []
    for rule in RULES:
        for n_classes in given.classes:
            for n_images in given.images:
                size = ["--images", str(n_images), "--classes", str(n_classes), "--rule", rule]
                command = [sys.executable, "-m", "tests.bench.bench_pseudo_labels", *size]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                table.append(json.loads(done.stdout.splitlines()[-1]))
                print(table[-1], file=sys.stderr, flush=True)
    print("## Choosing pseudo-labels\n\n" + markdown(table))


if __name__ == "__main__":
    main()
