import heapq
import tracemalloc

import numpy as np
import pytest

from raydapt.methods.cpl import rules
from raydapt.methods.prompting import probability_blocks, pseudo_labels, quantiles
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks, restrict_probability, top_classes
from raydapt.methods.prompting.pseudo_labels import growing_count
from tests.methods.cases import lists_of, mask_of, probabilities


@pytest.fixture(autouse=True)
def small_blocks_and_lists(monkeypatch):
    """What a block, a sample and a list hold in a set of very many images and classes."""
    monkeypatch.setattr(probability_blocks, "CELLS_PER_BLOCK", 50)
    monkeypatch.setattr(quantiles, "_CELLS_OF_SAMPLE", 60)
    monkeypatch.setattr(pseudo_labels, "_LIST", 2)
    monkeypatch.setattr(rules, "_LIST", 2)


def top_k_per_class(probability, k):
    return pseudo_labels.top_k_per_class(ProbabilityBlocks.of(probability), k)


def leader_board(probability, k):
    return pseudo_labels.leader_board(ProbabilityBlocks.of(probability), k)


def published_leader_board(probability, k):
    return pseudo_labels.published_leader_board(ProbabilityBlocks.of(probability), k)


def cpl_candidates(probability, alpha, beta):
    return mask_of(rules.cpl_candidates(ProbabilityBlocks.of(probability), alpha, beta), probability.shape[1])


def cpl_select(probability, candidates, k):
    return rules.cpl_select(lists_of(probability, candidates), k, probability.shape[1])


def cpl_targets(probability, candidates, rows, *, soft):
    lists, n_classes = lists_of(probability, candidates), probability.shape[1]
    return rules.cpl_targets(lists, rows, n_classes, soft=soft).toarray()


SIZES = [(1, 2, 1), (7, 3, 1), (7, 3, 2), (40, 4, 6), (40, 4, 10), (40, 4, 50), (60, 9, 3)]


def pairs(selection):
    return set(zip(selection.row_M.tolist(), selection.class_M.tolist(), strict=True))


def of(k, c):
    """The places of a class: one number for all, or one of each."""
    return k if isinstance(k, int) else int(k[c])


def naive_top_k(probability, k):
    chosen = set()
    for c in range(probability.shape[1]):
        rows = sorted(range(len(probability)), key=lambda row: (-probability[row, c], row))
        chosen |= {(row, c) for row in rows[: of(k, c)]}
    return chosen


def naive_boards(probability, candidates, k, order):
    """One image at a time, in any order: offered to its classes, who push out their true minimum."""
    boards = [[] for _ in range(probability.shape[1])]
    wish = dict.fromkeys(range(len(probability)), 0)
    for first in order:
        row = first
        while row is not None:
            classes = sorted(np.flatnonzero(candidates[row]), key=lambda c: (-probability[row, c], c))
            if wish[row] == len(classes):
                break
            c = classes[wish[row]]
            wish[row] += 1
            boards[c].append(row)
            if len(boards[c]) <= of(k, c):
                break
            worst = min(boards[c], key=lambda r: (probability[r, c], -r))
            boards[c].remove(worst)
            row = worst
    return {(row, c) for c, board in enumerate(boards) for row in board}


def naive_published_board(probability, k):
    """As GRIP's code does it, lists of tuples, sorted on replacement."""
    n_classes = probability.shape[1]
    boards = [[] for _ in range(n_classes)]
    for row, p in enumerate(probability):
        top = int(np.argmax(p))
        if len(boards[top]) < of(k, top):
            boards[top].append((p[top], row))
        elif boards[top] and boards[top][-1][0] < p[top]:
            boards[top] = sorted([*boards[top], (p[top], row)], reverse=True)[: of(k, top)]
        else:
            for score, c in sorted([(p[c], c) for c in range(n_classes) if c != top], reverse=True):
                if len(boards[c]) < of(k, c):
                    boards[c].append((score, row))
                elif boards[c] and boards[c][-1][0] < score:
                    boards[c] = sorted([*boards[c], (score, row)], reverse=True)[: of(k, c)]
    return {(row, c) for c, board in enumerate(boards) for _, row in board}


def naive_candidates(probability, alpha, beta):
    tau = np.quantile([max(row) for row in probability.astype(np.float64)], alpha)
    candidates = np.zeros(probability.shape, bool)
    for i, row in enumerate(probability.astype(np.float64)):
        total = 0.0
        for c in sorted(range(len(row)), key=lambda c: (-row[c], c)):
            candidates[i, c] = True
            total += row[c]
            if total > tau:
                break
    for c in range(probability.shape[1]):
        column = probability[:, c].astype(np.float64)
        bound = np.quantile(column, beta)
        for i in range(len(probability)):
            candidates[i, c] &= column[i] >= bound
    return candidates


def test_restricted_probabilities_are_a_softmax_over_the_candidates():
    logits = np.random.default_rng(0).normal(size=(20, 6)) * 3
    everything = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    kept = np.exp(logits[:, [1, 4]]) / np.exp(logits[:, [1, 4]]).sum(1, keepdims=True)
    actual = restrict_probability(everything.astype(np.float32), np.array([1, 4]))
    np.testing.assert_allclose(actual, kept, rtol=1e-5)
    certain = np.array([[1.0, 0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(restrict_probability(certain, np.array([1, 2])), [[0.5, 0.5]])


@pytest.mark.parametrize("ties", [False, True])
def test_boards_of_unequal_size_equal_the_loops(ties):
    probability, k_C = probabilities(40, 5, seed=2, ties=ties), np.array([0, 1, 3, 9, 20])
    everything = np.ones(probability.shape, bool)
    assert pairs(leader_board(probability, k_C)) == naive_boards(probability, everything, k_C, list(range(40)))
    assert pairs(published_leader_board(probability, k_C)) == naive_published_board(probability, k_C)
    assert pairs(top_k_per_class(probability, k_C)) == naive_top_k(probability, k_C)
    candidates = cpl_candidates(probability, 0.75, 0.5)
    expected = naive_boards(probability, candidates, k_C, list(range(40)))
    assert pairs(cpl_select(probability, candidates, k_C)) == expected
    equal_C = np.full(5, 4)
    assert pairs(leader_board(probability, equal_C)) == pairs(leader_board(probability, 4))


def test_candidates_with_a_threshold_of_each_class_equal_the_loop():
    probability, beta_C = probabilities(30, 4, seed=3), np.array([0.0, 0.5, 0.9, 1.0])
    expected = np.stack([naive_candidates(probability, 0.5, beta)[:, c] for c, beta in enumerate(beta_C)], axis=1)
    np.testing.assert_array_equal(cpl_candidates(probability, 0.5, beta_C), expected)


def test_counts_grow_to_an_equal_share_and_never_below_one():
    assert [growing_count(n, 10, 1257, 10) for n in (1, 5, 10)] == [12, 62, 125]
    assert growing_count(1, 10, 20, 10) == 1


@pytest.mark.parametrize(("n_images", "n_classes", "k"), SIZES)
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_equals_the_loop(n_images, n_classes, k, ties):
    probability = probabilities(n_images, n_classes, ties=ties)
    selection = top_k_per_class(probability, k)
    assert pairs(selection) == naive_top_k(probability, k)
    assert np.bincount(selection.class_M, minlength=n_classes).tolist() == [min(k, n_images)] * n_classes
    assert len(set(selection.row_M.tolist())) + selection.waiting == n_images


@pytest.mark.parametrize(("n_images", "n_classes", "k"), SIZES)
@pytest.mark.parametrize("ties", [False, True])
def test_clean_board_equals_one_image_at_a_time_in_any_order(n_images, n_classes, k, ties):
    probability = probabilities(n_images, n_classes, ties=ties)
    selection = leader_board(probability, k)
    everything = np.ones(probability.shape, bool)
    for order in (range(n_images), reversed(range(n_images)), np.random.default_rng(1).permutation(n_images)):
        assert pairs(selection) == naive_boards(probability, everything, k, list(order))
    assert len(set(selection.row_M.tolist())) == len(selection.row_M) == min(n_images, k * n_classes)
    assert selection.waiting == n_images - len(selection.row_M)


def test_clean_board_does_not_depend_on_the_order_of_the_files():
    probability = probabilities(50, 5)
    order = np.random.default_rng(3).permutation(50)
    shuffled = {(int(order[row]), c) for row, c in pairs(leader_board(probability[order], 4))}
    assert shuffled == pairs(leader_board(probability, 4))


@pytest.mark.parametrize(("n_images", "n_classes", "k"), SIZES)
@pytest.mark.parametrize("ties", [False, True])
def test_published_board_equals_the_published_loop(n_images, n_classes, k, ties):
    probability = probabilities(n_images, n_classes, seed=4, ties=ties)
    selection = published_leader_board(probability, k)
    assert pairs(selection) == naive_published_board(probability, k)
    assert selection.waiting == n_images - len(set(selection.row_M.tolist()))


def test_published_board_depends_on_the_order_and_may_give_an_image_two_labels():
    probability = np.array([[0.9, 0.06, 0.04], [0.8, 0.1, 0.1]], np.float32)
    selection = published_leader_board(probability, 1)
    assert pairs(selection) == {(0, 0), (1, 1), (1, 2)}
    assert selection.waiting == 0
    backwards = published_leader_board(probability[::-1].copy(), 1)  # the second image pushes the first one out
    assert pairs(backwards) == {(1, 0)}
    assert backwards.waiting == 1


def test_candidates_of_a_matrix_by_hand():
    probability = np.array([[0.90, 0.05, 0.05], [0.50, 0.30, 0.20], [0.40, 0.35, 0.25], [0.10, 0.20, 0.70]], np.float32)
    # Maxima 0.4 0.5 0.7 0.9; their median is 0.6: row 1 goes 0.5, then 0.3 exceeds; row 2 goes 0.4, then 0.35 exceeds.
    intra = [[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(cpl_candidates(probability, 0.5, 0.0), np.array(intra, bool))
    # Medians of the columns: 0.45, 0.25, 0.225.
    inter = [[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]]
    both = np.array(intra, bool) & np.array(inter, bool)
    np.testing.assert_array_equal(cpl_candidates(probability, 0.5, 0.5), both)


@pytest.mark.parametrize("alpha", [0.1, 0.6, 0.75, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_candidates_equal_the_loop(alpha, beta, seed):
    probability = probabilities(53, 7, seed=seed, ties=seed == 2)
    candidates = cpl_candidates(probability, alpha, beta)
    np.testing.assert_array_equal(candidates, naive_candidates(probability, alpha, beta))
    assert cpl_candidates(probability, alpha, 0.0).any(axis=1).all()


@pytest.mark.slow
def test_candidates_of_many_rows_and_columns_are_found_chunk_by_chunk():
    probability = probabilities(5000, 70)
    some = np.r_[0:3, 4094:4099, 4997:5000]
    alpha, beta = 0.7, 0.9
    candidates = cpl_candidates(probability, alpha, beta)
    bounds = np.quantile(probability.astype(np.float64), beta, axis=0)
    tau = np.quantile(probability.max(axis=1).astype(np.float64), alpha)
    for i in some:
        row = probability[i].astype(np.float64)
        order = np.argsort(-row)
        n_taken = int(np.argmax(np.cumsum(row[order]) > tau)) + 1
        expected = {c for c in order[:n_taken] if row[c] >= bounds[c]}
        assert set(np.flatnonzero(candidates[i])) == expected


@pytest.mark.parametrize(("n_images", "n_classes", "k"), SIZES)
@pytest.mark.parametrize("beta", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("ties", [False, True])
def test_selection_equals_one_image_at_a_time_and_conserves_images(n_images, n_classes, k, beta, ties):
    probability = probabilities(n_images, n_classes, seed=2, ties=ties)
    candidates = cpl_candidates(probability, 0.75, beta)
    selection = cpl_select(probability, candidates, k)
    order = np.random.default_rng(5).permutation(n_images)
    assert pairs(selection) == naive_boards(probability, candidates, k, list(order))
    assert len(selection.row_M) + selection.waiting + selection.dropped == n_images
    assert selection.dropped == int((~candidates.any(axis=1)).sum())
    assert candidates[selection.row_M, selection.class_M].all()


def test_a_displaced_image_tries_its_next_candidate_and_waits_when_it_has_none():
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.5, 0.5]], np.float32)
    candidates = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], bool)
    selection = cpl_select(probability, candidates, 1)
    assert pairs(selection) == {(0, 0), (1, 1)}
    assert (selection.waiting, selection.dropped) == (1, 1)


def test_pairs_are_ordered_by_class_and_falling_confidence():
    probability = probabilities(40, 4)
    for selection in (
        leader_board(probability, 6),
        published_leader_board(probability, 6),
        top_k_per_class(probability, 6),
    ):
        assert (np.diff(selection.class_M) >= 0).all()
        confidence = probability[selection.row_M, selection.class_M]
        np.testing.assert_array_equal(confidence, selection.confidence_M)
        for c in range(4):
            assert (np.diff(confidence[selection.class_M == c]) <= 0).all()


def test_targets_are_masked_and_renormalised_or_hard():
    probability = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], np.float32)
    candidates = np.array([[1, 1, 0], [0, 1, 1], [0, 1, 1]], bool)
    rows = np.array([2, 0])
    soft = cpl_targets(probability, candidates, rows, soft=True)
    np.testing.assert_allclose(soft, [[0, 0.5, 0.5], [2 / 3, 1 / 3, 0]], rtol=1e-6)
    np.testing.assert_array_equal(cpl_targets(probability, candidates, rows, soft=False), [[0, 1, 1], [1, 1, 0]])


def dense_boards(probability, candidates, k):
    """The textbook's algorithm on whole wish lists of a dense matrix, one proposal at a time, boards as heaps."""
    wishes = np.argsort(np.where(candidates, -probability, np.float32(1)), axis=1, kind="stable")
    n_wishes, next_ = candidates.sum(axis=1), np.zeros(len(probability), int)
    boards = [[] for _ in range(probability.shape[1])]
    for first in range(len(probability)):
        row = first
        while row is not None and next_[row] < n_wishes[row]:
            c = int(wishes[row, next_[row]])
            next_[row] += 1
            entry = (float(probability[row, c]), -row)
            if len(boards[c]) < k:
                heapq.heappush(boards[c], entry)
                row = None
            else:
                row = -heapq.heappushpop(boards[c], entry)[1]
    return {(-row, c) for c, board in enumerate(boards) for _, row in board}


def dense_candidates(probability, alpha, beta):
    """CPL's rule on whole matrices."""
    probability = probability.astype(np.float64)
    order = np.argsort(-probability, axis=1, kind="stable")
    total = np.cumsum(np.take_along_axis(probability, order, axis=1), axis=1)
    taken = np.concatenate([np.ones((len(order), 1), bool), total[:, :-1] <= np.quantile(probability.max(1), alpha)], 1)
    candidates = np.zeros(order.shape, bool)
    np.put_along_axis(candidates, order, taken, axis=1)
    return candidates & (probability >= np.quantile(probability, beta, axis=0))


def peak_bytes(function):
    """The most that a call holds beside what was there before it."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Counted(ProbabilityBlocks):
    """Blocks that are made anew each time, and how many cells were made."""

    def __init__(self, probability):
        self.cells = 0
        super().__init__(probability.shape, self.made)
        self._kept, self._probability = None, probability

    def made(self, rows):
        block = self._probability[rows].copy()
        self.cells += block.size
        return block


@pytest.fixture
def large_blocks(monkeypatch):
    """A twentieth of ten thousand images and a hundred classes, and the lists of the code."""
    monkeypatch.setattr(probability_blocks, "CELLS_PER_BLOCK", 50_000)
    monkeypatch.setattr(quantiles, "_CELLS_OF_SAMPLE", 100_000)
    monkeypatch.setattr(pseudo_labels, "_LIST", 16)
    monkeypatch.setattr(rules, "_LIST", 32)


@pytest.mark.slow
@pytest.mark.usefixtures("large_blocks")
@pytest.mark.parametrize("k", [10, 100])
def test_ten_thousand_images_of_a_hundred_classes_equal_the_dense_rules_in_a_part_of_their_memory(k):
    probability = probabilities(10_000, 100, seed=1)
    blocks, whole = Counted(probability), probability.nbytes
    expected = dense_candidates(probability, 0.75, 0.9)
    candidates, peak = peak_bytes(lambda: rules.cpl_candidates(blocks, 0.75, 0.9))
    np.testing.assert_array_equal(mask_of(candidates, 100), expected)
    assert blocks.cells == 3 * probability.size  # a look, the quantiles, the sets
    assert peak < whole
    selection, peak = peak_bytes(lambda: rules.cpl_select(candidates, k, 100))
    assert pairs(selection) == dense_boards(probability, expected, k)
    assert peak < whole
    blocks.cells = 0
    selection, peak = peak_bytes(lambda: pseudo_labels.leader_board(blocks, k))
    assert pairs(selection) == dense_boards(probability, np.ones(probability.shape, bool), k)
    assert blocks.cells < 6 * probability.size
    assert peak < 2 * whole
    blocks.cells = 0
    selection, peak = peak_bytes(lambda: pseudo_labels.top_k_per_class(blocks, k))
    assert pairs(selection) == naive_top_k(probability, k)
    assert blocks.cells == probability.size
    assert peak < 0.5 * whole


@pytest.mark.usefixtures("large_blocks")
@pytest.mark.parametrize("soft", [False, True])
def test_targets_of_many_images_equal_the_dense_rule(soft):
    probability = probabilities(10_000, 100, seed=1)
    probability[:50] = np.eye(100, dtype=np.float32)[0]  # certainly of a class that is no candidate of theirs
    candidates = dense_candidates(probability, 0.75, 0.9)
    candidates[:, 1] = True  # no image without candidates
    candidates[:50, 0] = False
    rows = np.random.default_rng(0).permutation(10_000)[:9_000]
    hard = candidates[rows].astype(np.float32)
    masked = probability[rows] * hard
    even, kept = hard / hard.sum(1, keepdims=True), masked.sum(1, keepdims=True)
    expected = np.where(kept > 0, masked / np.where(kept > 0, kept, 1), even) if soft else hard
    target = rules.cpl_targets(lists_of(probability, candidates), rows, 100, soft=soft)
    np.testing.assert_allclose(target.toarray(), expected, rtol=1e-6)
    assert target.data.nbytes < 0.2 * expected.nbytes
    assert (target.data > 0).all()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n_best", [1, 3, 6])
def test_the_best_classes_are_those_of_a_stable_sort(n_best, ties):
    probability = probabilities(30, 6, ties=ties)
    probability[:, 2] = 0
    order = np.argsort(-probability, axis=1, kind="stable")[:, :n_best]
    classes, confidence = top_classes(probability, n_best)
    np.testing.assert_array_equal(classes, order)
    np.testing.assert_array_equal(confidence, np.take_along_axis(probability, order, axis=1))
    open_ = np.random.default_rng(0).random(probability.shape) < 0.5
    order = np.argsort(np.where(open_, 0, 2) - probability.astype(np.float64), axis=1, kind="stable")[:, :n_best]
    np.testing.assert_array_equal(top_classes(probability, n_best, open_)[0], order)


@pytest.mark.parametrize("kind", ["spread", "sorted", "ties", "zeros", "a single image"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_quantiles_of_the_columns_are_those_of_numpy(kind, share):
    probability = probabilities(1 if kind == "a single image" else 400, 5, ties=kind == "ties")
    if kind == "sorted":  # the sample is as even as ever, and its bounds are too narrow for blocks that differ so
        probability = np.sort(probability, axis=0)
        probability[-15:] = probability[-15:][::-1]
    if kind == "zeros":
        probability[probability < 0.2] = 0
    blocks, share_C = Counted(probability), np.array([share, 0.5, share, 0.9, share])
    _, sample = quantiles.sample_of(blocks)
    expected = [np.quantile(column.astype(np.float64), q) for column, q in zip(probability.T, share_C, strict=True)]
    np.testing.assert_array_equal(quantiles.column_quantiles(blocks, sample, share_C), expected)


@pytest.mark.usefixtures("large_blocks")
def test_a_sample_does_not_keep_the_blocks_that_it_was_drawn_from(monkeypatch):
    monkeypatch.setattr(quantiles, "_CELLS_OF_SAMPLE", 1000)
    probability = probabilities(10_000, 100)
    (_, sample), peak = peak_bytes(lambda: quantiles.sample_of(Counted(probability)))
    np.testing.assert_array_equal(sample, probability[::1000])
    assert peak < 0.2 * probability.nbytes


def test_a_sample_that_misleads_costs_passes_and_no_digit(monkeypatch):
    monkeypatch.setattr(quantiles, "_CELLS_OF_SAMPLE", 500)
    probability = probabilities(400, 5)
    probability[::4] = 1.0  # exactly the images that are drawn
    blocks, share_C = Counted(probability), np.full(5, 0.5)
    _, sample = quantiles.sample_of(blocks)
    assert (sample == 1).all()
    blocks.cells = 0
    expected = np.quantile(probability.astype(np.float64), 0.5, axis=0)
    np.testing.assert_array_equal(quantiles.column_quantiles(blocks, sample, share_C), expected)
    assert blocks.cells == 2 * probability.size


def test_blocks_of_a_small_set_are_kept_and_others_made_anew_with_the_same_bits(monkeypatch):
    probability = probabilities(60, 5)
    made = []

    def rows_of(rows):
        made.append(rows)
        return probability[rows]

    for kept, times in ((1000, 6), (299, 12)):
        monkeypatch.setattr(probability_blocks, "CELLS_KEPT", kept)
        made.clear()
        blocks = ProbabilityBlocks(probability.shape, rows_of)
        for _ in range(2):
            assert np.array_equal(np.concatenate([block for _, block in blocks]), probability)
        assert len(made) == times
    assert [rows.start for rows, _ in blocks.holding(np.array([3, 9, 25]))] == [0, 20]


def test_nothing_is_copied_where_nothing_is_restricted():
    probability = probabilities(40, 4)
    assert restrict_probability(probability, np.arange(4)) is probability
    assert restrict_probability(probability, np.array([0, 1, 3, 2])) is not probability
