"""Label-free scores on pools of candidates: correlation with accuracy, regret of the choice, share of the gap closed.

    python -m tests.bench.bench_scores POOLS

POOLS is a folder of `tests.bench.pools`. Scores are those of `raydapt.methods.scores`; *combined* is the mean rank over
some. The gap closed is (chosen - zero-shot) / (best - zero-shot), over the pools' means. Prints a Markdown table.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import v_measure_score
from torch import Tensor

from raydapt.methods import scores
from raydapt.tune.selection import combined_scores
from tests.bench.pools import Pool, read_pools

COMBINED = {
    "combined: consensus, agreement, mutual information": ("consensus", "agreement", "mutual information"),
    "consensus, agreement, clusters": ("consensus", "agreement", "clusters"),
    "the four": ("consensus", "agreement", "mutual information", "clusters"),
    "clusters, mutual information": ("mutual information", "clusters"),
    "clusters, agreement": ("agreement", "clusters"),
    "consensus, clusters": ("consensus", "clusters"),
}
"""The first is what a sweep without synthetic images and a stated prior goes by."""


def batch_nuclear_norm(probability_NC: Tensor) -> float:
    """Sum of the singular values of the answers as a share of its maximum sqrt(N min(N, C)) (Cui et al., CVPR 2020).

    As the mutual information: greatest where answers are sure and classes evenly used.
    """
    n_images, n_classes = probability_NC.shape
    return float(torch.linalg.svdvals(probability_NC.double()).sum()) / math.sqrt(n_images * min(n_images, n_classes))


def effective_rank(probability_NC: Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023): exp of the entropy of the singular values, as a share of the largest rank.

    RankMe measures embeddings; methods here share frozen ones, so it is of the answers.
    """
    value_K = torch.linalg.svdvals(probability_NC.double())
    return math.exp(float(torch.special.entr(value_K / value_K.sum() + 1e-7).sum())) / len(value_K)


def scores_of(pool: Pool) -> dict[str, np.ndarray]:
    """Every score of every candidate, [T] each."""
    p_TNC, n_classes = pool.probability_TNC.float(), pool.probability_TNC.shape[2]
    class_TN = p_TNC.argmax(dim=2)
    neighbour_NK = scores.nearest_images(pool.feature_ND, 10)
    cluster_N = scores.clusters(pool.feature_ND, n_classes)

    def agreement(p_NC: Tensor) -> float:
        return scores.agreement(p_NC.argmax(dim=1), scores.neighbours_vote(p_NC, neighbour_NK), n_classes)

    found = {
        "consensus": scores.consensus(class_TN, n_classes),
        "agreement": [agreement(p_NC) for p_NC in p_TNC],
        "mutual information": [scores.mutual_information(p_NC) for p_NC in p_TNC],
        "class balance": [scores.class_balance(p_NC) for p_NC in p_TNC],
        "clusters": [scores.cluster_agreement(class_N, cluster_N) for class_N in class_TN],
        "clusters, V-measure": [v_measure_score(cluster_N.numpy(), class_N.numpy()) for class_N in class_TN],
        "BNM": [batch_nuclear_norm(p_NC) for p_NC in p_TNC],
        "effective rank": [effective_rank(p_NC) for p_NC in p_TNC],
    }
    values = {name: np.array(score_T) for name, score_T in found.items()}
    for name, parts in COMBINED.items():
        values[name] = combined_scores(np.stack([values[part] for part in parts], axis=1))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path)
    torch.set_num_threads(1)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    best, zero_shot = [], []
    for pool in read_pools(parser.parse_args().pools):
        accuracy_T = pool.accuracies()
        best.append(accuracy_T.max())
        zero_shot.append(accuracy_T[0])
        for name, score_T in scores_of(pool).items():
            correlation = float(spearmanr(score_T, accuracy_T).statistic) if np.ptp(score_T) > 0 else 0.0
            chosen = float(accuracy_T[int(score_T.argmax())])
            rows.setdefault(name, []).append((correlation, best[-1] - chosen, chosen))
    print(f"{len(best)} pools, zero-shot {np.mean(zero_shot):.1f}, best {np.mean(best):.1f}\n")
    print("| score | correlation | regret | worst | below zero-shot, pools | gap closed |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        correlation_P, regret_P, chosen_P = np.array(row).T
        closed = (chosen_P.mean() - np.mean(zero_shot)) / (np.mean(best) - np.mean(zero_shot))
        cells = [f"{correlation_P.mean():+.2f}", f"{regret_P.mean():.1f}", f"{regret_P.max():.1f}"]
        cells += [str(int((chosen_P < np.array(zero_shot) - 1e-9).sum())), f"{100 * closed:.0f} %"]
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()
