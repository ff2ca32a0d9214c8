"""What FPL, GRIP and CPL have in common: rounds, streams, targets, determinism, every paradigm and kind of prompt."""

import dataclasses

import pytest
import torch

from raydapt.errors import UserError
from raydapt.methods.contract import Batch
from raydapt.methods.cpl.rules import cpl_candidates, cpl_select
from raydapt.methods.cpl.settings import CplSettings
from raydapt.methods.fpl.settings import FplSettings
from raydapt.methods.grip.settings import GripSettings
from raydapt.methods.prompting.hard_labels import Weighting, loss_weights
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks, restrict_probability
from raydapt.methods.prompting.pseudo_labels import leader_board, published_leader_board, top_k_per_class
from raydapt.methods.targets import batch_of
from raydapt.settings.groups import DataSettings, ModelSettings, TrainSettings
from tests.methods.cases import CLASSES, build_method, config_of, mask_of, over_unlabelled, tiny_clip, training_images

CPL = CplSettings(alpha=0.75, beta=0.5, rounds=4)


def config(method, *, prompt="text", seed=0, **settings):
    return config_of(
        method,
        {"cpl": CPL, "grip": GripSettings(rounds=4), **settings},
        seed=seed,
        data=DataSettings(),
        model=ModelSettings(prompt=prompt, text_prompt_tokens=4, visual_prompt_tokens=3),
        train=TrainSettings(batch_size=16),
    )


def probability_of(method, images):
    with torch.no_grad():
        image_U = images.take(images.unlabelled_U, method.input_kind)
        return method.logits(image_U).softmax(dim=1)


def zero_shot_probability(clip, images):
    class_CD = clip.class_embeddings(CLASSES.names, CLASSES.templates[:1])
    return (clip.logit_scale * images.feature_ND @ class_CD.T).softmax(dim=1).numpy()


def batches_of(method, images, streams):
    return {
        s.name: Batch(
            image_B=images.take(s.index_M[:6], method.input_kind),
            target_BC=batch_of(s.target_MC, torch.arange(min(6, len(s.index_M)))),
            index_B=s.index_M[:6],
        )
        for s in streams
    }


@pytest.mark.parametrize("paradigm", ["ul", "ssl", "trzsl"])
@pytest.mark.parametrize("prompt", ["text", "visual", "both"])
@pytest.mark.parametrize("name", ["fpl", "grip", "cpl"])
def test_two_rounds_in_every_paradigm_with_every_prompt(name, prompt, paradigm):
    clip = tiny_clip()
    images = training_images(paradigm, clip=clip, with_pixels=prompt != "text")
    method = build_method(config(name, prompt=prompt), clip, CLASSES, images)
    assert (method.input_kind == "pixels") == (prompt != "text")
    assert method.rounds == (1 if name == "fpl" else 4)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    for round_ in (1, 2):
        streams = method.begin_round(round_, over_unlabelled(method, images))
        method.enter_round(round_, streams)
        assert [s.index_M.dtype for s in streams] == [torch.int64] * len(streams)
        assert all(batch.target_BC.dtype == torch.float32 for batch in batches_of(method, images, streams).values())
        loss = method(batches_of(method, images, streams))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())
        optimizer.step()
        pseudo = method.pseudo_labels
        assert set(pseudo.index_M.tolist()) <= set(images.unlabelled_U.tolist())
        assert set(pseudo.class_M.tolist()) <= set(images.candidate_classes.tolist())
        assert set(pseudo.target_MC.indices.tolist()) <= set(images.candidate_classes.tolist())
        assert (pseudo.target_MC.toarray()[range(len(pseudo.class_M)), pseudo.class_M.numpy()] > 0).all()


@pytest.mark.parametrize("name", ["grip", "cpl"])
def test_first_round_reads_the_zero_shot_head_later_ones_the_model(name):
    clip = tiny_clip()
    images = training_images(clip=clip)
    method = build_method(config(name), clip, CLASSES, images)
    method.begin_round(1, over_unlabelled(method, images))
    zero_shot = zero_shot_probability(clip, images)
    for i, c, p in zip(*(t.tolist() for t in vars_of(method.pseudo_labels)), strict=True):
        assert p == pytest.approx(float(zero_shot[i, c]), rel=1e-4)
    before = probability_of(method, images)
    method.begin_round(2, over_unlabelled(method, images))
    for i, c, p in zip(*(t.tolist() for t in vars_of(method.pseudo_labels)), strict=True):
        assert p == pytest.approx(float(before[i, c]), rel=1e-4)


def vars_of(pseudo_labels):
    return pseudo_labels.index_M, pseudo_labels.class_M, pseudo_labels.confidence_M


def test_prompts_depend_on_seed_and_round_alone():
    clip, images = tiny_clip(), training_images()

    def prompt_of(seed, round_, *, detour=False):
        method = build_method(config("grip", seed=seed), clip, CLASSES, images)
        if detour:
            torch.manual_seed(99)
            method.begin_round(1, over_unlabelled(method, images))
        method.begin_round(round_, over_unlabelled(method, images))
        return method.prompted.text.context_LD.detach().clone()

    assert torch.equal(prompt_of(0, 2), prompt_of(0, 2, detour=True))
    assert not torch.equal(prompt_of(0, 1), prompt_of(0, 2))
    assert not torch.equal(prompt_of(0, 2), prompt_of(1, 2))


def test_cpl_is_soft_in_the_first_round_and_hard_later_and_conserves_images():
    images = training_images()
    clip = tiny_clip()
    method = build_method(config("cpl"), clip, CLASSES, images)
    method.begin_round(1, over_unlabelled(method, images))
    soft = torch.from_numpy(method.pseudo_labels.target_MC.toarray())
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(len(soft)))
    assert ((soft > 0) & (soft < 1)).any()
    method.begin_round(2, over_unlabelled(method, images))
    pseudo = method.pseudo_labels
    assert set(pseudo.target_MC.data.tolist()) == {1.0}
    assert len(pseudo.index_M) + pseudo.waiting + pseudo.dropped == len(images.unlabelled_U)


def test_cpl_rounds_follow_the_rules_step_by_step():
    clip, images = tiny_clip(), training_images("trzsl")
    method = build_method(config("cpl"), clip, CLASSES, images)
    everything = probability_of(method, images)
    method.begin_round(3, over_unlabelled(method, images))
    q = restrict_probability(everything.numpy(), images.candidate_classes.numpy())
    candidates = cpl_candidates(ProbabilityBlocks.of(q), 0.75, 0.5)
    selection = cpl_select(candidates, 3 * len(q) // (4 * 2), 2)
    pseudo = method.pseudo_labels
    assert pseudo.index_M.tolist() == images.unlabelled_U[selection.row_M].tolist()
    for target, row in zip(pseudo.target_MC.toarray().tolist(), selection.row_M, strict=True):
        expected = [0.0] * 4
        for k, c in enumerate(images.candidate_classes.tolist()):
            expected[c] = float(mask_of(candidates, 2)[row, k])
        assert target == expected


def test_cpl_labelled_batches_are_in_proportion_and_bounded():
    clip = tiny_clip()
    bounds = set()
    for paradigm, n in (("ssl", 60), ("trzsl", 60), ("ssl", 600), ("trzsl", 6000)):
        images = training_images(paradigm, n=n)
        settings = {"cpl": CplSettings(alpha=0.75, beta=0.0, rounds=4 if n < 6000 else 20)}
        method = build_method(config("cpl", **settings), clip, CLASSES, images)
        pseudo, labelled = method.begin_round(1, None)
        assert pseudo.batch_size == 16
        ratio = len(images.labelled_L) / len(pseudo.index_M)
        assert labelled.batch_size == min(max(int(16 * ratio), 8), 256)
        assert (labelled.name, labelled.index_M.tolist()) == ("labelled", images.labelled_L.tolist())
        assert labelled.target_MC.argmax(dim=1).tolist() == images.label_L.tolist()
        bounds.add(labelled.batch_size)
    assert {8, 256} < bounds  # both bounds, and something between them


def test_cpl_loss_is_labelled_cross_entropy_plus_lambda_times_candidate_loss():
    clip, images = tiny_clip(), training_images("ssl")
    settings = CplSettings(alpha=0.75, beta=0.5, rounds=4, unlabelled_weight=0.3)
    method = build_method(config("cpl", cpl=settings), clip, CLASSES, images)
    batches = batches_of(method, images, method.begin_round(1, None))
    pseudo, labelled = batches["pseudo"], batches["labelled"]
    p_BC = method.logits(pseudo.image_B).softmax(dim=1)
    unlabelled_loss = -(p_BC * pseudo.target_BC).sum(dim=1).log().mean()
    labelled_loss = -(method.logits(labelled.image_B).log_softmax(dim=1) * labelled.target_BC).sum(dim=1).mean()
    torch.testing.assert_close(method(batches), labelled_loss + 0.3 * unlabelled_loss)
    del batches["labelled"]
    torch.testing.assert_close(method(batches), 0.3 * unlabelled_loss)


@pytest.mark.parametrize("board", ["clean", "published"])
def test_grip_grows_its_boards(board):
    clip, images = tiny_clip(), training_images(n=80)
    method = build_method(config("grip", grip=GripSettings(rounds=4, board=board)), clip, CLASSES, images)
    for round_, k in ((2, 10), (4, 20)):
        everything = probability_of(method, images)
        method.begin_round(round_, over_unlabelled(method, images))
        counts = method.pseudo_labels.class_M.bincount(minlength=4)
        assert int(counts.max()) == k
        if board == "clean":
            assert counts.tolist() == [k] * 4
            selection = leader_board(ProbabilityBlocks.of(everything.numpy()), k)
            assert method.pseudo_labels.index_M.tolist() == selection.row_M.tolist()


def test_weights_of_labelled_and_pseudo_labelled_images():
    ul, ssl, trzsl = (training_images(paradigm) for paradigm in ("ul", "ssl", "trzsl"))
    assert loss_weights(ul, 0, 24, Weighting()) == (0.0, 1.0)
    assert loss_weights(ssl, 8, 24, Weighting()) == (24 / 8, 1.0)
    assert loss_weights(trzsl, 30, 24, Weighting()) == (1.0, 30 / 24)  # the public code of GRIP
    assert loss_weights(trzsl, 30, 24, Weighting(trzsl="unlabelled")) == (1.0, 30 / 30)  # its paper
    assert loss_weights(trzsl, 30, 24, Weighting(labelled=0.5)) == (0.5, 1.0)
    assert loss_weights(ul, 0, 24, Weighting(labelled=0.5)) == (0.0, 1.0)


@pytest.mark.parametrize("weight", ["selected", "unlabelled"])
@pytest.mark.parametrize("name", ["grip", "fpl"])
def test_trzsl_weighs_unseen_images_by_what_the_round_selected(name, weight):
    settings = {"grip": GripSettings(rounds=4, trzsl_weight=weight), "fpl": FplSettings(shots=3, trzsl_weight=weight)}
    images = training_images("trzsl")
    method = build_method(config(name, **settings), tiny_clip(), CLASSES, images)
    streams = method.begin_round(1, None)
    method.enter_round(1, streams)
    n_selected = len(method.pseudo_labels.index_M)
    assert n_selected == 6
    assert method._weights == (1.0, 30 / (n_selected if weight == "selected" else 30))


def test_fpl_takes_the_top_of_each_column_or_the_leader_board():
    images = training_images()
    for selection, chosen in (("top", top_k_per_class), ("board", published_leader_board)):
        fpl = FplSettings(shots=5, selection=selection)
        method = build_method(config("fpl", fpl=fpl), tiny_clip(), CLASSES, images)
        method.begin_round(1, None)
        expected = chosen(ProbabilityBlocks.of(zero_shot_probability(tiny_clip(), images)), 5)
        assert method.pseudo_labels.index_M.tolist() == expected.row_M.tolist()
        assert method.pseudo_labels.class_M.tolist() == expected.class_M.tolist()


@pytest.mark.parametrize("paradigm", ["ul", "ssl", "trzsl"])
def test_grip_may_put_a_fifth_of_both_groups_aside(paradigm):
    images = training_images(paradigm)
    whole, most = (
        build_method(config("grip", grip=GripSettings(rounds=4, train_share=s)), tiny_clip(), CLASSES, images)
        for s in (1.0, 0.8)
    )
    (all_,), (kept,) = (m.begin_round(1, None) for m in (whole, most))
    pseudo, labelled = len(whole.pseudo_labels.index_M), len(images.labelled_L)
    n_labelled = int(torch.isin(kept.index_M, images.labelled_L).sum())
    assert (len(kept.index_M) - n_labelled, n_labelled) == (int(0.8 * pseudo), int(0.8 * labelled))
    rows = {(i, tuple(t)) for i, t in zip(all_.index_M.tolist(), all_.target_MC.toarray().tolist(), strict=True)}
    assert {
        (i, tuple(t)) for i, t in zip(kept.index_M.tolist(), kept.target_MC.toarray().tolist(), strict=True)
    } <= rows
    most.enter_round(1, [kept])
    if paradigm == "trzsl":
        assert most._weights == (1.0, n_labelled / int(0.8 * pseudo))


def test_grip_loss_weighs_the_two_groups_also_after_resuming():
    clip, images = tiny_clip(), training_images("ssl")
    method = build_method(config("grip"), clip, CLASSES, images)
    (stream,) = method.begin_round(1, None)
    resumed = build_method(config("grip"), clip, CLASSES, images)
    resumed.load_state_dict(method.state_dict())
    row_B = torch.tensor([0, 1, 2, len(stream.index_M) - 1, len(stream.index_M) - 2])
    index_B = stream.index_M[row_B]
    batch = Batch(image_B=images.feature_ND[index_B], target_BC=batch_of(stream.target_MC, row_B), index_B=index_B)
    loss_B = -(method.logits(batch.image_B).log_softmax(dim=1) * batch.target_BC).sum(dim=1)
    gamma = (len(stream.index_M) - 8) / 8
    for each in (method, resumed):
        each.enter_round(1, [stream])
        torch.testing.assert_close(each({"train": batch}), gamma * loss_B[3:].mean() + loss_B[:3].mean())


def test_fpl_takes_the_most_confident_images_of_every_class():
    clip, images = tiny_clip(), training_images()
    method = build_method(config("fpl"), clip, CLASSES, images)
    (stream,) = method.begin_round(1, None)
    assert method.pseudo_labels.class_M.bincount().tolist() == [16] * 4
    assert stream.target_MC.toarray().argmax(axis=1).tolist() == method.pseudo_labels.class_M.tolist()


def test_a_method_without_images_predicts_what_its_saved_state_predicts():
    clip, images = tiny_clip(), training_images()
    method = build_method(config("cpl"), clip, CLASSES, images)
    method.begin_round(1, None)
    auto = config("cpl", cpl=CplSettings())
    restored = build_method(auto, clip, CLASSES)
    restored.load_state_dict(method.state_dict())
    assert torch.equal(restored.logits(images.feature_ND), method.logits(images.feature_ND))
    with pytest.raises(RuntimeError, match="without training images"):
        restored.begin_round(1, None)


def test_thresholds_must_be_resolved():
    with pytest.raises(ValueError, match="resolved"):
        build_method(config("cpl", cpl=CplSettings()), tiny_clip(), CLASSES, training_images())


@pytest.mark.parametrize("name", ["fpl", "grip", "cpl"])
def test_nothing_unlabelled_is_one_sentence(name):
    images = dataclasses.replace(training_images(), unlabelled_U=torch.empty(0, dtype=torch.int64))
    method = build_method(config(name), tiny_clip(), CLASSES, images)
    with pytest.raises(UserError, match="no unlabelled training images"):
        method.begin_round(1, lambda: torch.zeros(0, 4))
