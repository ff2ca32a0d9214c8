"""Every method on shifted sets, with and without the guard: on the set itself, on a test like it, on a balanced test.

    python -m tests.bench.bench_shifted --sets FOLDER whurs19 --output cases.jsonl
    python -m tests.bench.bench_shifted --table cases.jsonl

FOLDER holds feature sets of `feature_sets`, ``whurs19`` are the four of ``RAYDAPT_DATA``, ``clip-like`` the generated
development sets. Three fifths of a labelled set are shifted (`raydapt.data.shifts`) and learned from without labels,
the rest tests: shifted in the same way, and with as many images of every named class. One line per case and method.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from raydapt.data.shifts import VARIANTS, ShiftedSet, shifted
from raydapt.methods.fusion.settings import FusionSettings
from raydapt.methods.open_set import familiarity
from raydapt.methods.transduct.neighbours import nearest
from raydapt.methods.transduct.settings import TransductSettings
from tests.bench.bench_guard import SETTINGS, Classifier, Learned, folder_sets, fused, learner, transduced
from tests.bench.bench_shifts import accuracy, distance, generated, whurs19
from tests.clip_like import FeatureSet

LEARNED_SHARE = 0.6
METHODS = ("transduct", "fusion", *SETTINGS)
ROUNDS = ("cpl", "grip")
"""Methods of several rounds, of which the guard may keep an earlier one."""
ABLATIONS: dict[str, Callable[[Tensor, Tensor, float], Classifier]] = {
    "transduct without neighbours": lambda rows, text, scale: transduced(
        rows, text, scale, prior="unknown", settings=TransductSettings(neighbours=0)
    ),
    "transduct with equal shares": lambda rows, text, scale: transduced(rows, text, scale, prior="uniform"),
    "fusion without transduction": lambda rows, text, scale: fused(
        rows, text, scale, prior="unknown", settings=FusionSettings(transduction=0.0)
    ),
    "fusion of transduction alone": lambda rows, text, scale: fused(
        rows, text, scale, prior="unknown", settings=FusionSettings(transduction=1.0)
    ),
}
"""What a part is worth, by leaving it out."""


def halves(features: FeatureSet, seed: int) -> tuple[FeatureSet, FeatureSet]:
    """Images to learn from and images to test with, of every class in the same shares."""
    rng, learned, held_out = np.random.default_rng(seed), [], []
    label_N = features.label_N.numpy()
    for c in np.unique(label_N):
        row_n = rng.permutation(np.flatnonzero(label_N == c))
        cut = max(1, round(LEARNED_SHARE * len(row_n)))
        learned.append(row_n[:cut])
        held_out.append(row_n[cut:])
    first, second = (torch.from_numpy(np.concatenate(rows)) for rows in (learned, held_out))
    return tuple(
        replace(features, feature_ND=features.feature_ND[rows], label_N=features.label_N[rows])
        for rows in (first, second)
    )  # type: ignore[return-value]


def tests_of(variant: str, held_out: FeatureSet, drawn: ShiftedSet, seed: int, most: int) -> dict[str, Any]:
    """Features and targets of the two tests: the same shift, and as many images of every named class."""
    label_N = held_out.label_N.numpy()
    like = shifted(variant, label_N, seed)
    assert (like.class_K == drawn.class_K).all()
    even = shifted("balanced", label_N, seed)
    position = np.full(int(label_N.max()) + 1, -1)
    position[drawn.class_K] = np.arange(len(drawn.class_K))
    even_row_M = even.row_M[position[label_N[even.row_M]] >= 0]
    return {
        "like it": _rows(held_out, like.row_M[:most], like.target_M[:most]),
        "balanced": _rows(held_out, even_row_M[:most], position[label_N[even_row_M]][:most]),
    }


def _rows(features: FeatureSet, row_M: Any, target_M: Any) -> tuple[Tensor, Tensor]:
    return features.feature_ND[torch.from_numpy(row_M)], torch.from_numpy(target_M)


def cases(
    sets: Iterator[tuple[str, FeatureSet]],
    methods: Sequence[str],
    variants: Sequence[str],
    seeds: Sequence[int],
    most: int,
) -> Iterator[dict[str, Any]]:
    """One case after the other."""
    for name, features in sets:
        for variant, seed in ((v, s) for v in variants for s in seeds):
            pool, held_out = halves(features, seed)
            drawn = shifted(variant, pool.label_N.numpy(), seed)
            feature_MD, target_M = _rows(pool, drawn.row_M[:most], drawn.target_M[:most])
            text_KD = features.text_CD[torch.from_numpy(drawn.class_K)]
            tests = {"itself": (feature_MD, target_M), **tests_of(variant, held_out, drawn, seed, most)}
            for method in methods:
                given, last = (feature_MD, text_KD, features.scale), None
                if method in ABLATIONS:
                    learned = Learned(classify=ABLATIONS[method](*given))
                else:
                    learned = learner(method, *given, seed=seed)
                    last = learner(method, *given, seed=seed, guarded=False) if method in ROUNDS else None
                case = {"set": name, "variant": variant, "seed": seed, "method": method}
                yield case | measured(learned, (last or learned).classify, tests, text_KD, features.scale)


def measured(
    learned: Learned,
    last: Classifier,
    tests: dict[str, tuple[Tensor, Tensor]],
    text_KD: Tensor,
    scale: float,
) -> dict[str, Any]:
    """Zero-shot, the unguarded last round and what is kept on every test, and what is known of the shares."""
    found: dict[str, Any] = {}
    own_MD, own_target_M = tests["itself"]
    guarded = learned.verdict((scale * own_MD @ text_KD.T).softmax(dim=1), own_MD)
    for test, (feature_MD, target_M) in tests.items():
        zero_MK = (scale * feature_MD @ text_KD.T).softmax(dim=1)
        kept_MK = guarded.probabilities(zero_MK, learned.classify(feature_MD))
        answers = {"zero_shot": zero_MK, "adapted": last(feature_MD), "kept": kept_MK}
        found[test] = {key: accuracy(score, target_M) for key, score in answers.items()}
        found[test] |= {f"{key}_mean_per_class": per_class(score, target_M) for key, score in answers.items()}
    answer_MK = learned.classify(own_MD)
    found["shares"] = {
        "uniform": distance(torch.full((len(text_KD),), 1 / len(text_KD)), own_target_M),
        "answers": distance(answer_MK.mean(dim=0), own_target_M),
    }
    if (own_target_M < 0).any():
        familiar_M = familiarity(own_MD, text_KD, answer_MK.argmax(dim=1), nearest(own_MD, 10))
        found["auroc"] = roc_auc_score((own_target_M >= 0).numpy(), familiar_M.numpy())
    return found | {"verdict": guarded.verdict}


def per_class(score_MK: Tensor, target_M: Tensor) -> float:
    """Mean over the classes that occur of the percentage right."""
    right_M = score_MK.argmax(dim=1) == target_M
    return float(np.mean([100 * float(right_M[target_M == k].double().mean()) for k in target_M.unique() if k >= 0]))


def table(found: list[dict[str, Any]], test: str, key: str) -> str:
    """Mean / worst change against zero-shot by variant and method."""
    change: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case in found:
        change[case["variant"], case["method"]].append(case[test][key] - case[test]["zero_shot"])
    variants, methods = (list(dict.fromkeys(case[name] for case in found)) for name in ("variant", "method"))
    lines = [
        "| variant | zero-shot | " + " | ".join(f"`{m}`" for m in methods) + " |",
        "|---" * (len(methods) + 2) + "|",
    ]
    for variant in variants:
        start = np.mean([case[test]["zero_shot"] for case in found if case["variant"] == variant])
        cells = [_cell(change[variant, method]) for method in methods]
        lines.append(f"| {variant} | {start:.1f} | " + " | ".join(cells) + " |")
    every = [_cell([c for v in variants for c in change[v, method]]) for method in methods]
    return "\n".join([*lines, "| all | | " + " | ".join(every) + " |"])


def _cell(changes: Sequence[float]) -> str:
    return f"{np.mean(changes):+.1f} / {min(changes):+.1f}" if changes else "–"


def facts(found: list[dict[str, Any]]) -> str:
    """Distances of the shares to the true ones, and AUROC of the images of no named class."""
    methods = list(dict.fromkeys(case["method"] for case in found))
    lines = ["| variant | uniform | " + " | ".join(f"`{m}`" for m in methods) + " |", "|---" * (len(methods) + 2) + "|"]
    for variant in dict.fromkeys(case["variant"] for case in found):
        here = [case for case in found if case["variant"] == variant]
        shares = [[case["shares"]["answers"] for case in here if case["method"] == m] for m in methods]
        cells = [f"{np.mean(values):.2f}" if values else "–" for values in shares]
        lines.append(
            f"| {variant} | {np.mean([c['shares']['uniform'] for c in here]):.2f} | " + " | ".join(cells) + " |"
        )
    told = [[case["auroc"] for case in found if case["method"] == m and "auroc" in case] for m in methods]
    cells = [f"{np.mean(values):.2f} / {min(values):.2f}" if values else "–" for values in told]
    return "\n".join([*lines, "| AUROC, mean / worst | | " + " | ".join(cells) + " |"])


def page(found: list[dict[str, Any]]) -> str:
    """Markdown: what is kept on each test, the unguarded classifiers on the set itself, and what is known of shares."""
    parts = [
        ("What the run answers, on the unlabelled set itself", table(found, "itself", "kept")),
        ("The adapted classifier unguarded, on the unlabelled set itself", table(found, "itself", "adapted")),
        ("What the run answers, on a test with the same shift", table(found, "like it", "kept")),
        ("What the run answers, on a balanced test", table(found, "balanced", "kept")),
        ("Class shares, distance to the true ones", facts(found)),
    ]
    return "\n\n".join(f"{title}:\n\n{text}" for title, text in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=["clip-like"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=[*METHODS, *ABLATIONS])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--most", type=int, default=2000, help="images of a test")
    parser.add_argument("--output")
    parser.add_argument("--table")
    parser.add_argument("--only", nargs="*", help="words in the names of the sets that --table is of")
    given = parser.parse_args()
    if given.table:
        found = [json.loads(line) for line in Path(given.table).read_text().splitlines()]
        print(page([case for case in found if not given.only or any(word in case["set"] for word in given.only)]))
        return
    known = {"clip-like": generated, "whurs19": whurs19}
    sets = chain.from_iterable(known[s]() if s in known else folder_sets(Path(s)) for s in given.sets)
    torch.set_num_threads(1)
    with Path(given.output).open("a") as file:
        for case in tqdm(cases(sets, given.methods, given.variants, given.seeds, given.most)):
            file.write(json.dumps(case) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
