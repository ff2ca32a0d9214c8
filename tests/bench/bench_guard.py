"""What each method and the guard do on shifted variants of feature sets, on the unlabelled set itself.

``python -m tests.bench.bench_guard --sets clip-like --output cases.jsonl`` learns on the generated development sets,
``--sets FOLDER`` on every ``NAME.pt`` of a folder (see `feature_sets`), ``--sets whurs19`` on the four feature sets of
``RAYDAPT_DATA``. One line per case: accuracies of zero-shot, of the adapted classifier, of the mean of both and of what
the guard keeps, and the evidence. ``--table cases.jsonl`` prints the Markdown table of such a file.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydapt.data.class_features import MEAN, ClassFeatures
from raydapt.data.classes import ClassSpace
from raydapt.data.shifts import VARIANTS, shifted
from raydapt.methods.class_prior import class_prior
from raydapt.methods.configuration import load_config
from raydapt.methods.contract import Method, TrainingImages
from raydapt.methods.fusion.fused_answers import fused_answers
from raydapt.methods.fusion.settings import FusedAnswers, FusionSettings
from raydapt.methods.fusion.student import learn_student
from raydapt.methods.guard import Guarded, judge
from raydapt.methods.spec import BuildContext
from raydapt.methods.table import spec_of
from raydapt.methods.transduct.fit import fit as fit_mixture
from raydapt.methods.transduct.settings import TransductSettings
from raydapt.methods.zero_shot.method import ZeroShot
from raydapt.models.given_embeddings import GivenEmbeddings
from raydapt.train.loop import fit
from raydapt.train.place import WorkerContext
from raydapt.train.rounds import round_guard
from tests.bench.bench_shifts import accuracy, generated, inductive, whurs19
from tests.clip_like import FeatureSet

CPU = torch.device("cpu")
SETTINGS: dict[str, tuple[str, ...]] = {
    "fpl": ("train.max_steps_per_round=200", "model.prompt=residual"),
    "grip": ("train.max_steps_per_round=50", "model.prompt=residual"),
    "cpl": ("train.max_steps_per_round=50", "model.prompt=residual", "cpl.alpha=0.75", "cpl.beta=0.95"),
    "fair": ("fair.crops=0", "fair.layer_norms=false", "fair.anchor_text=names", "train.max_steps_per_round=200"),
    "latteclip": (
        "latteclip.tune=residual",
        "latteclip.use_image_caption=false",
        "latteclip.use_batch_caption=false",
        "train.max_steps_per_round=200",
        "train.learning_rate=0.001",
        "train.batch_size=128",
    ),
}
"""Recipes of the methods, cut to a length that many cases allow."""


FUSED = ("cpl", "fpl", "fair", "latteclip")


Classifier = Callable[[Tensor], Tensor]
"""Probabilities [M, K] of unit features [M, D]."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What has come of a method."""

    classify: Classifier
    earlier_round: bool = False
    """Whether the guard kept an earlier round than the last, which then answers together with zero-shot."""

    def verdict(self, zero_MK: Tensor, feature_MD: Tensor) -> Guarded:
        """The guard's, by the features that were learned from."""
        found = judge(zero_MK, self.classify(feature_MD), feature_MD)
        softened = self.earlier_round and found.verdict == "adapted"
        return replace(found, verdict="mean of both") if softened else found


def fused(
    feature_MD: Tensor,
    text_KD: Tensor,
    scale: float,
    *,
    prior: str | dict[str, str | float],
    settings: FusionSettings = FusionSettings(),  # noqa: B008 - frozen
) -> Classifier:
    """``fusion`` over the answers of `FUSED`, as its room makes them."""
    base_MK = scale * feature_MD @ text_KD.T
    zero_MK = base_MK.softmax(dim=1)
    learned = [learner(method, feature_MD, text_KD, scale, prior=prior) for method in FUSED]
    adapted = [one.classify(feature_MD) for one in learned]
    guarded = [one.verdict(zero_MK, feature_MD) for one in learned]
    mean_MK = torch.stack(fused_of(zero_MK, adapted, guarded, settings.answers)).mean(dim=0)
    return taught(feature_MD, text_KD, scale, mean_MK, settings)


def fused_of(
    zero_MK: Tensor, adapted: Sequence[Tensor], guarded: Sequence[Guarded], answers: FusedAnswers
) -> list[Tensor]:
    """What of every classifier is fused, as ``fusion.answers`` says."""
    verdicts = fused_answers([one.verdict for one in guarded], [one.evidence for one in guarded], answers)
    kept = [replace(one, verdict=verdict) for one, verdict in zip(guarded, verdicts, strict=True)]
    return [one.probabilities(zero_MK, own_MK) for one, own_MK in zip(kept, adapted, strict=True)]


def taught(feature_MD: Tensor, text_KD: Tensor, scale: float, mean_MK: Tensor, settings: FusionSettings) -> Classifier:
    """The student of ``fusion`` that learns a mean answer of the classifiers, and transduction over it."""
    log_MK = mean_MK.clamp_min(1e-6).log()
    labels_MK = fit_mixture(feature_MD, text_KD, scale, base=lambda rows: log_MK[rows]).probabilities()
    target_MK = settings.transduction * labels_MK + (1 - settings.transduction) * mean_MK
    head = learn_student(feature_MD, target_MK, text_KD, scale=scale, hold=settings.student_strength)
    return lambda rows: (scale * rows @ text_KD.T + rows @ head.weight_CD.T + head.bias_C).softmax(dim=1)


def transduced(
    feature_MD: Tensor,
    text_KD: Tensor,
    scale: float,
    *,
    prior: str | dict[str, str | float],
    settings: TransductSettings = TransductSettings(),  # noqa: B008 - frozen
) -> Classifier:
    """``transduct``: the fitted images have their own answers, others those of texts and mixture."""
    log_prior_K = class_prior(prior, [f"class {k}" for k in range(len(text_KD))]).log_prior()
    found = fit_mixture(feature_MD, text_KD, scale, settings, log_prior_C=log_prior_K)
    return lambda rows: (
        found.probabilities() if rows is feature_MD else inductive(found, rows, scale * rows @ text_KD.T).softmax(dim=1)
    )


class _Forgetful:
    """Checkpoints that are not kept."""

    def load(self) -> bytes | None:
        return None

    def save(self, data: bytes | None, metrics: Any) -> None:
        return None


def stated(kind: str, target_M: Tensor, names: list[str]) -> str | dict[str, str | float]:
    """What a person would state as ``data.class_prior``: nothing, levels, or the true counts.

    A class is common with more than twice its equal share, rare with less than half of it.
    """
    count_K = torch.bincount(target_M[target_M >= 0], minlength=len(names))
    if kind == "true":
        return {name: float(count) for name, count in zip(names, count_K.tolist(), strict=True)}
    if kind == "levels":
        share_K = (count_K / count_K.sum() * len(names)).tolist()
        level = ["common" if share > 2 else "rare" if share < 0.5 else "normal" for share in share_K]
        return dict(zip(names, level, strict=True))
    return kind


def adapted(
    method: str,
    feature_MD: Tensor,
    text_KD: Tensor,
    scale: float,
    *,
    prior: str | dict[str, str | float] = "unknown",
    settings: Sequence[str] = (),
    seed: int = 0,
) -> Tensor:
    """Probabilities [M, K] of a method that has learned from these features; `settings` are laid over its recipe."""
    return learner(method, feature_MD, text_KD, scale, prior=prior, settings=settings, seed=seed).classify(feature_MD)


def learner(
    method: str,
    feature_MD: Tensor,
    text_KD: Tensor,
    scale: float,
    *,
    prior: str | dict[str, str | float] = "unknown",
    settings: Sequence[str] = (),
    seed: int = 0,
    guarded: bool = True,
) -> Learned:
    """What a method answers that has learned from these features; `settings` are laid over its recipe.

    Unguarded, the last round answers, and not the last one that the guard accepts.
    """
    if method == "fusion":
        return Learned(classify=fused(feature_MD, text_KD, scale, prior=prior))
    if method == "transduct":
        return Learned(classify=transduced(feature_MD, text_KD, scale, prior=prior))
    names = [f"class {k}" for k in range(len(text_KD))]
    config = load_config(None, [f"method={method}", "train.precision=fp32", *SETTINGS[method], *settings])
    config = replace(config, data=replace(config.data, class_prior=prior))
    source = SimpleNamespace(rows=len(feature_MD))
    facts: Any = SimpleNamespace(source=source, classes=SimpleNamespace(names=names), width=text_KD.shape[1])
    config = spec_of(method).decide_rate(config, facts)
    clip = GivenEmbeddings(
        ClassFeatures(
            uri="bench",
            names=tuple(names),
            class_M=np.arange(len(names)),
            template_M=(MEAN,) * len(names),
            feature_MD=text_KD.numpy(),
        ),
        logit_scale=scale,
    )
    images = TrainingImages(
        feature_ND=feature_MD,
        n_classes=len(names),
        labelled_L=torch.empty(0, dtype=torch.int64),
        label_L=torch.empty(0, dtype=torch.int64),
        unlabelled_U=torch.arange(len(feature_MD)),
        candidate_classes=torch.arange(len(names)),
    )
    classes, plain = ClassSpace(names=tuple(names), templates=(MEAN,), labels=tuple(names)), ZeroShot(clip, text_KD)
    rounds = round_guard(config, plain, images, input_kind="features", device=CPU) if guarded else None
    context = BuildContext(config=config, clip=clip, classes=classes, images=images)
    learned: Method = spec_of(method).build(context)
    state = fit(
        learned,
        images,
        config.train,
        seed=seed,
        place=WorkerContext(device=CPU),
        checkpoints=_Forgetful(),
        log=lambda line: None,
        judge=rounds,
    )
    learned.eval()

    def probabilities(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return learned.logits(rows).float().softmax(dim=1)

    return Learned(classify=probabilities, earlier_round=state.kept_round is not None)


def folder_sets(folder: Path) -> Iterator[tuple[str, FeatureSet]]:
    for path in sorted(folder.glob("*.pt")):
        held = torch.load(path)
        yield (
            path.stem,
            FeatureSet(feature_ND=held["feature"], label_N=held["label"], text_CD=held["text"], scale=held["scale"]),
        )


def measure(
    sets: Iterator[tuple[str, FeatureSet]], methods: list[str], variants: list[str], seeds: int, most: int, prior: str
) -> Iterator[dict[str, Any]]:
    """One case after the other."""
    for set_name, features in sets:
        for variant in variants:
            for seed in range(seeds):
                chosen = shifted(variant, features.label_N.numpy(), seed)
                row_M = torch.from_numpy(chosen.row_M)[:most]
                target_M = torch.from_numpy(chosen.target_M)[:most]
                feature_MD, text_KD = features.feature_ND[row_M], features.text_CD[torch.from_numpy(chosen.class_K)]
                zero_MK = (features.scale * feature_MD @ text_KD.T).softmax(dim=1)
                for method in methods:
                    names = [f"class {k}" for k in range(len(text_KD))]
                    said = stated(prior, target_M, names)
                    learned = learner(method, feature_MD, text_KD, features.scale, prior=said)
                    case = {"set": set_name, "variant": variant, "seed": seed, "method": method, "prior": prior}
                    yield case | _of_case(zero_MK, learned, feature_MD, target_M)


def _of_case(zero_MK: Tensor, learned: Learned, feature_MD: Tensor, target_M: Tensor) -> dict[str, Any]:
    guarded, answer_MK = learned.verdict(zero_MK, feature_MD), learned.classify(feature_MD)
    kept_MK = guarded.probabilities(zero_MK, answer_MK)
    return {
        "zero_shot": accuracy(zero_MK, target_M),
        "adapted": accuracy(answer_MK, target_M),
        "mean": accuracy(zero_MK + answer_MK, target_M),
        "kept": accuracy(kept_MK, target_M),
        **guarded.as_metrics(),
    }


def table(cases: list[dict[str, Any]], column: str) -> str:
    """Mean / worst change against zero-shot by method and variant."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case in cases:
        found[case["method"], case["variant"]].append(case[column] - case["zero_shot"])
    methods, variants = (list(dict.fromkeys(case[key] for case in cases)) for key in ("method", "variant"))
    lines = ["| " + " | ".join(["variant", *methods]) + " |", "|" + "---|" * (len(methods) + 1)]
    for variant in variants:
        cells = [f"{np.mean(found[m, variant]):+.1f} / {min(found[m, variant]):+.1f}" for m in methods]
        lines.append("| " + " | ".join([variant, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default="clip-like")
    parser.add_argument("--only", nargs="*", help="names of sets")
    parser.add_argument("--methods", nargs="*", default=["transduct", *SETTINGS])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--most", type=int, default=1200, help="images of a case")
    parser.add_argument("--prior", default="unknown", choices=("unknown", "uniform", "levels", "true"))
    parser.add_argument("--output")
    parser.add_argument("--table")
    given = parser.parse_args()
    if given.table:
        cases = [json.loads(line) for line in Path(given.table).read_text().splitlines()]
        for column in ("adapted", "mean", "kept"):
            print(f"\n{column}\n\n{table(cases, column)}")
        return
    known = {"clip-like": generated, "whurs19": whurs19}
    sets = known[given.sets]() if given.sets in known else folder_sets(Path(given.sets))
    wanted = ((name, one) for name, one in sets if not given.only or name in given.only)
    torch.set_num_threads(1)
    with Path(given.output).open("a") as file:
        for case in measure(wanted, given.methods, given.variants, given.seeds, given.most, given.prior):
            file.write(json.dumps(case) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
