"""The fixed point against a naive form of it, and what must not change its answer."""

import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.transduct.fit import fit
from raydapt.methods.transduct.lists import lists_of
from raydapt.methods.transduct.method import Transduct
from raydapt.methods.transduct.neighbours import Neighbours, _by_sklearn, _by_torch, _largest, nearest
from raydapt.methods.transduct.settings import TransductSettings, published
from raydapt.methods.transduct.soft_labels import SoftLabels
from tests.clip_like import ClipLike, clip_like
from tests.methods.cases import tiny_clip


@pytest.fixture(scope="module")
def drawn():
    return clip_like(ClipLike(n_classes=6, per_class=20, zero_shot=0.7, width=64), 0)


def answer(drawn, settings=None, **keywords):
    return fit(drawn.feature_ND, drawn.text_CD, drawn.scale, settings, **keywords)


def naive(drawn, settings):
    """Dense and unblocked, means and neighbours in loops."""
    feature_ND, text_CD = drawn.feature_ND.double(), drawn.text_CD.double()
    n_images, n_classes, width = len(feature_ND), len(text_CD), feature_ND.shape[1]
    base_NC = drawn.scale * feature_ND @ text_CD.T
    cosine_NN = feature_ND @ feature_ND.T
    mean_D = feature_ND.mean(dim=0)
    cone_CD = F.normalize(mean_D + settings.anchor_reach * (text_CD - text_CD.mean(dim=0)), dim=1)
    anchor_CD = (1 - settings.anchor_gap) * cone_CD + settings.anchor_gap * text_CD
    z = base_NC.softmax(dim=1)
    spread = [sum(z[i, c] * (feature_ND[i] - anchor_CD[c]) ** 2 for c in range(n_classes)) for i in range(n_images)]
    anchor_variance_D = sum(spread) / n_images
    alpha = settings.anchor_images
    for _ in range(settings.rounds):
        mass_C = z.sum(dim=0)
        mean_CD = (z.T @ feature_ND + alpha * anchor_CD) / (mass_C + alpha)[:, None]
        square_NCD = (feature_ND[:, None] - mean_CD) ** 2
        total_D = (z[:, :, None] * square_NCD).sum(dim=(0, 1))
        total_D = total_D + alpha * (((anchor_CD - mean_CD) ** 2) + anchor_variance_D).sum(dim=0)
        variance_D = total_D / (n_images + alpha * n_classes)
        score_NC = base_NC - 2 * settings.temper / width * 0.5 * (square_NCD / variance_D).sum(dim=2)
        score_NC = score_NC + ((mass_C + settings.prior_images) / (n_images + settings.prior_images * n_classes)).log()
        for i in range(n_images):
            others = sorted((j for j in range(n_images) if j != i), key=lambda j: -float(cosine_NN[i, j]))
            near = others[: settings.neighbours]
            weight = [max(0.0, float(cosine_NN[i, j])) for j in near]
            score_NC[i] += (
                settings.neighbour_strength * sum(w * z[j] for w, j in zip(weight, near, strict=True)) / sum(weight)
            )
        z = score_NC.softmax(dim=1)
    return z


def test_the_fixed_point_is_the_naive_one(drawn):
    settings = TransductSettings(rounds=3, neighbours=4)
    torch.testing.assert_close(
        answer(drawn, settings).probabilities().double(), naive(drawn, settings), rtol=1e-2, atol=1e-3
    )


def test_blocks_do_not_matter(drawn, monkeypatch):
    whole = answer(drawn).probabilities()
    monkeypatch.setattr("raydapt.methods.transduct.fit._BLOCK_ELEMENTS", 1)
    bigger = clip_like(ClipLike(n_classes=6, per_class=60, zero_shot=0.7, width=64), 0)
    monkeypatch.setattr("raydapt.methods.transduct.fit._BLOCK_ELEMENTS", 2**23)
    once = answer(bigger).probabilities()
    monkeypatch.setattr("raydapt.methods.transduct.fit._BLOCK_ELEMENTS", 1)
    torch.testing.assert_close(answer(bigger).probabilities(), once, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(answer(drawn).probabilities(), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", ["tempered", "spherical", "transclip", "stata"])
def test_the_order_of_images_and_classes_does_not_matter(drawn, rule):
    settings = TransductSettings(rule=rule) if rule in ("tempered", "spherical") else published(rule)
    expected = answer(drawn, settings).probabilities()
    image_N = torch.randperm(len(expected), generator=torch.Generator().manual_seed(1))
    class_C = torch.randperm(expected.shape[1], generator=torch.Generator().manual_seed(2))
    found = fit(drawn.feature_ND[image_N], drawn.text_CD[class_C], drawn.scale, settings).probabilities()
    torch.testing.assert_close(found, expected[image_N][:, class_C], rtol=1e-2, atol=2e-3)


def test_a_turned_space_does_not_matter_to_cosines(drawn):
    settings = TransductSettings(rule="spherical")
    turn_DD = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    found = fit(
        F.normalize(drawn.feature_ND @ turn_DD, dim=1), F.normalize(drawn.text_CD @ turn_DD, dim=1), 100.0, settings
    )
    torch.testing.assert_close(found.probabilities(), answer(drawn, settings).probabilities(), rtol=1e-2, atol=2e-3)


def test_the_axes_scale_does_not_matter_to_gaussians(drawn):
    """Features and texts of another length give the same mixture when the base logits are the same."""
    base_NC = drawn.scale * drawn.feature_ND @ drawn.text_CD.T
    neighbours = nearest(drawn.feature_ND, 10)
    settings = TransductSettings(anchor_gap=1.0)
    keywords = {"base": lambda rows: base_NC[rows], "neighbours": neighbours}
    expected = fit(drawn.feature_ND, drawn.text_CD, drawn.scale, settings, **keywords).probabilities()
    found = fit(3 * drawn.feature_ND, 3 * drawn.text_CD, drawn.scale, settings, **keywords).probabilities()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3)


def test_a_class_that_is_not_there_changes_little(drawn):
    """A name that no image shows: a text that zero-shot sometimes prefers."""
    generator = torch.Generator().manual_seed(3)
    mean_D = drawn.text_CD.mean(dim=0)
    offset_D = torch.randn(64, generator=generator)
    offset_D *= float((drawn.text_CD - mean_D).norm(dim=1).mean()) / float(offset_D.norm())
    text_CD = torch.cat([drawn.text_CD, F.normalize(mean_D + offset_D, dim=0)[None]])
    before_N = answer(drawn).probabilities().argmax(dim=1)
    after = fit(drawn.feature_ND, text_CD, drawn.scale)
    after_N = after.probabilities().argmax(dim=1)
    zero_N = (drawn.feature_ND @ text_CD.T).argmax(dim=1)
    assert float((before_N != after_N).double().mean()) <= 0.05
    assert float((after_N == 6).double().mean()) <= float((zero_N == 6).double().mean())
    assert float(after.log_prior_C.exp()[6]) < 1 / 14


def test_it_is_better_than_zero_shot_and_serves_new_images(drawn):
    many = clip_like(ClipLike(n_classes=8, per_class=60, zero_shot=0.7, width=64), 1)
    half_N = torch.randperm(len(many.label_N), generator=torch.Generator().manual_seed(0)) % 2 == 0
    found = fit(many.feature_ND[half_N], many.text_CD, many.scale)
    method = Transduct(tiny_clip(), many.text_CD, found.text_strength, found)
    method.frozen.clip.logit_scale = many.scale
    for score, kept_N in ((found.probabilities(), half_N), (method.logits(many.feature_ND[~half_N]), ~half_N)):
        zero = (many.feature_ND[kept_N] @ many.text_CD.T).argmax(dim=1)
        right = (score.argmax(dim=1) == many.label_N[kept_N]).double().mean()
        assert right > (zero == many.label_N[kept_N]).double().mean() + 0.05


def test_a_stated_prior_is_used_and_kept(drawn):
    stated_C = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]).log()
    found = answer(drawn, log_prior_C=stated_C)
    torch.testing.assert_close(found.log_prior_C, stated_C)
    assert found.labels.dense(slice(None))[:, 0].sum() >= answer(drawn).labels.dense(slice(None))[:, 0].sum()


def test_one_image_and_two_classes():
    text_CD = F.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0]]), dim=1)
    found = fit(text_CD[:1], text_CD, 100.0).probabilities()
    assert found.shape == (1, 2)
    assert int(found.argmax()) == 0


def test_nearest_is_the_naive_one(drawn):
    feature_ND = drawn.feature_ND[:40]
    found = nearest(feature_ND, 3)
    for i in range(40):
        expected = sorted((j for j in range(40) if j != i), key=lambda j: -float(feature_ND[i] @ feature_ND[j]))[:3]
        assert found.index_NK[i].tolist() == expected
        torch.testing.assert_close(found.affinity_NK[i], (feature_ND[expected] @ feature_ND[i]).clamp_min(0))


@pytest.mark.parametrize("search", [_by_sklearn, _by_torch])
def test_every_search_finds_the_same(drawn, search):
    cosine_NK, index_NK = search(drawn.feature_ND, 4)
    torch.testing.assert_close(index_NK[:, 1:].int(), nearest(drawn.feature_ND, 3).index_NK)
    torch.testing.assert_close(cosine_NK[:, 1:], nearest(drawn.feature_ND, 3).affinity_NK, rtol=1e-4, atol=1e-5)


def test_lists_find_nearly_all(drawn, monkeypatch):
    many = clip_like(ClipLike(n_classes=8, per_class=300, zero_shot=0.7, width=32), 1).feature_ND
    exact = nearest(many, 5).index_NK
    monkeypatch.setattr("raydapt.methods.transduct.neighbours.EXACT_LIMIT", 100)
    found = nearest(many, 5).index_NK
    shared = sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True))
    assert 0.9 < shared / exact.numel() < 1
    monkeypatch.setattr("raydapt.methods.transduct.neighbours._PROBED", 10**6)
    monkeypatch.setattr("raydapt.methods.transduct.neighbours._BLOCK_BYTES", 4 * len(many) * 3)  # blocks of 3 queries
    torch.testing.assert_close(nearest(many, 5).index_NK, exact)


def test_more_lists_than_are_compared_find_nearly_all(monkeypatch):
    """As beyond a million images: 200 lists, of which an image is compared with those of 4 of 20 coarse ones."""
    many = clip_like(ClipLike(n_classes=8, per_class=1000, zero_shot=0.7, width=32), 1).feature_ND
    exact = nearest(many, 5).index_NK
    monkeypatch.setattr("raydapt.methods.transduct.neighbours.EXACT_LIMIT", 100)
    for name, value in {"_MOST_COARSE": 20, "_PER_LIST": 40, "_SHARED": 4}.items():
        monkeypatch.setattr(f"raydapt.methods.transduct.lists.{name}", value)
    lists = lists_of(many)
    assert 180 <= len(lists.rows) <= 200  # 8,000 images, 40 a list
    assert torch.equal(torch.cat(list(lists.rows)).sort().values, torch.arange(8000))
    found = nearest(many, 5).index_NK
    shared = sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True))
    assert 0.9 < shared / exact.numel() < 1


def test_images_far_from_all_others_have_a_list_although_none_of_them_was_drawn(monkeypatch):
    for name, value in {"_MOST_COARSE": 30, "_PER_LIST": 40, "_SHARED": 1}.items():
        monkeypatch.setattr(f"raydapt.methods.transduct.lists.{name}", value)
    monkeypatch.setattr("raydapt.methods.transduct.neighbours.EXACT_LIMIT", 100)
    generator = torch.Generator().manual_seed(0)
    near_ND = torch.randn(2000, 8, generator=generator) * 0.1 + torch.eye(8)[0]
    feature_ND = F.normalize(torch.cat([near_ND, -torch.eye(8)[1:].repeat(2, 1)]), dim=1)  # 7 pairs of copies
    lists = lists_of(feature_ND)
    assert torch.equal(torch.cat(list(lists.rows)).sort().values, torch.arange(2014))
    assert torch.equal(nearest(feature_ND, 1).index_NK[2000:2007, 0], torch.arange(2007, 2014).int())


@pytest.mark.parametrize("width", [7, 500, 96 * 44, 96 * 44 + 50, 96 * 60 + 95])
def test_the_largest_are_those_of_a_full_sort(width):
    value_BA = torch.randn(20, width, generator=torch.Generator().manual_seed(width))
    values, places = _largest(value_BA, min(11, width))
    expected = value_BA.sort(dim=1, descending=True)
    torch.testing.assert_close(values, expected.values[:, :11])
    torch.testing.assert_close(places, expected.indices[:, :11])


def test_places_that_the_lists_around_an_image_cannot_fill_have_no_affinity(monkeypatch):
    for name, value in {"EXACT_LIMIT": 1, "_PROBED": 1}.items():
        monkeypatch.setattr(f"raydapt.methods.transduct.neighbours.{name}", value)
    many = clip_like(ClipLike(n_classes=8, per_class=20, zero_shot=0.7, width=32), 1).feature_ND
    found = nearest(many, 30)
    empty = found.affinity_NK == 0
    assert empty.any(dim=1).all()  # 50 lists of 160 images
    assert (found.index_NK[empty] == 0).all()
    for i in range(len(many)):
        kept = found.index_NK[i][~empty[i]]
        assert i not in kept.tolist()
        assert len(kept.unique()) == len(kept)
        torch.testing.assert_close(found.affinity_NK[i][~empty[i]], (many[kept] @ many[i]).clamp_min(0))


def test_many_copies_of_one_image_are_one_list(monkeypatch):
    monkeypatch.setattr("raydapt.methods.transduct.neighbours.EXACT_LIMIT", 100)
    monkeypatch.setattr("raydapt.methods.transduct.neighbours._BLOCK_BYTES", 4096)
    generator = torch.Generator().manual_seed(0)
    others = F.normalize(torch.randn(200, 16, generator=generator), dim=1)
    feature_ND = torch.cat([others, others[:1].repeat(700, 1)])
    found = nearest(feature_ND, 4)
    torch.testing.assert_close(found.affinity_NK[200:], torch.ones(700, 4))
    assert not (found.index_NK == torch.arange(900)[:, None]).any()
    few = others[:3].repeat(100, 1)  # fewer different images than lists
    torch.testing.assert_close(nearest(few, 4).affinity_NK, torch.ones(300, 4))


def test_an_image_and_its_copies_are_each_others_neighbours_but_not_their_own():
    feature_ND = F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=1).repeat(3, 1)
    found = nearest(feature_ND, 2)
    for i in range(9):
        assert set(found.index_NK[i].tolist()) == {j for j in range(9) if j % 3 == i % 3 and j != i}


def test_kept_labels_lose_little():
    many = clip_like(ClipLike(n_classes=60, per_class=8, zero_shot=0.7), 1)
    full = fit(many.feature_ND, many.text_CD, 100.0, TransductSettings(kept_labels=60)).probabilities()
    part = fit(many.feature_ND, many.text_CD, 100.0, TransductSettings(kept_labels=16)).probabilities()
    assert float((full.argmax(dim=1) == part.argmax(dim=1)).double().mean()) > 0.98


def test_neighbours_mean_is_the_naive_one():
    generator = torch.Generator().manual_seed(0)
    probability_NC = torch.randn(7, 5, generator=generator).softmax(dim=1)
    labels = SoftLabels.empty(7, 5, 5, torch.device("cpu"))
    labels.write(slice(None), probability_NC)
    index_NK, affinity_NK = torch.randint(7, (7, 3), generator=generator), torch.rand(7, 3, generator=generator)
    found = labels.neighbours_mean(Neighbours(index_NK, affinity_NK), slice(2, 6))
    plain = labels.neighbours_mean(Neighbours(index_NK, affinity_NK), slice(2, 6), normalised=False)
    for i in range(2, 6):
        total = sum(affinity_NK[i, k] * probability_NC[index_NK[i, k]] for k in range(3))
        torch.testing.assert_close(plain[i - 2], total)
        torch.testing.assert_close(found[i - 2], total / affinity_NK[i].sum())
