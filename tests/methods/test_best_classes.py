"""Best classes against a loop over images."""

import torch

from raydapt.methods.best_classes import best_classes


def test_chunks_find_what_a_loop_finds(monkeypatch):
    monkeypatch.setattr("raydapt.methods.best_classes._ROWS_PER_CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    # Whole numbers, of which products are exact: a processor may round one column otherwise than another.
    feature_ND, class_CD = torch.randint(-9, 10, (35, 4), generator=generator).float().split([30, 5])
    class_CD[4] = class_CD[1]  # of equal scores the first class
    rows = []

    def scores(feature_BD):
        rows.append(len(feature_BD))
        return feature_BD @ class_CD.T

    score_N, class_N = best_classes(feature_ND, scores)
    assert rows == [7, 7, 7, 7, 2]
    for feature_D, score, c in zip(feature_ND, score_N.tolist(), class_N.tolist(), strict=True):
        each = [float(feature_D @ class_D) for class_D in class_CD[:4]]
        assert c == each.index(max(each))
        assert abs(score - max(each)) < 1e-6
    assert [len(part) for part in best_classes(feature_ND[:0], scores)] == [0, 0]
