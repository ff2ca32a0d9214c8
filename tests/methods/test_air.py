"""AiR within its bases: nothing of it is nothing, and each of its parts is what the formulas say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raydapt.methods.air.rules import class_weights, fuse
from raydapt.methods.air.settings import AirSettings
from raydapt.methods.contract import Batch
from raydapt.methods.cpl.rules import cpl_candidates, cpl_select
from raydapt.methods.cpl.settings import CplSettings
from raydapt.methods.grip.settings import GripSettings
from raydapt.methods.prompting import probability_blocks
from raydapt.methods.prompting.probability_blocks import ProbabilityBlocks, restrict_probability
from raydapt.methods.targets import batch_of
from raydapt.settings.groups import ModelSettings, TrainSettings
from raydapt.train.checkpoint import from_bytes
from raydapt.train.loop import fit
from raydapt.train.place import WorkerContext
from tests.methods.cases import (
    CLASSES,
    build_method,
    config_of,
    over_unlabelled,
    synthetic_images,
    tiny_clip,
    training_images,
)
from tests.methods.test_prompt_methods import zero_shot_probability

TRAIN = TrainSettings(batch_size=16, epochs=2, learning_rate=0.1, warmup_epochs=0.5, checkpoint_every_s=0)
CPL = CplSettings(alpha=0.75, beta=0.5, rounds=3)


def config(method="air", *, prompt="text", **air):
    air_settings = AirSettings(**{"nearest": 4, "centred": False, **air})
    return config_of(
        method,
        {"cpl": CPL, "grip": GripSettings(rounds=3), "air": air_settings},
        model=ModelSettings(prompt=prompt, text_prompt_tokens=4, visual_prompt_tokens=3),
        train=TRAIN,
    )


def with_synthetic(paradigm="ul", *, clip, prompt="text"):
    visual = prompt != "text"
    images = training_images(paradigm, clip=clip, with_pixels=visual)
    return replace(images, synthetic=synthetic_images(clip, with_pixels=visual))


def learned(config_, clip, images, *, stop_after=None):
    """The state of a whole training, or the bytes of its first checkpoints."""
    saved = []

    class Checkpoints:
        def load(self):
            return saved[-1] if saved else None

        def save(self, data, metrics):
            saved.append(data)
            if len(saved) == stop_after:
                raise KeyboardInterrupt

    def train():
        method = build_method(config_, clip, CLASSES, images)
        place = WorkerContext(device=torch.device("cpu"))
        return fit(method, images, TRAIN, seed=1, place=place, checkpoints=Checkpoints(), log=lambda line: None)

    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            train()
    return train(), saved


@pytest.mark.parametrize("paradigm", ["ul", "ssl", "trzsl"])
@pytest.mark.parametrize("base", ["cpl", "grip", "fpl"])
def test_without_weights_it_is_its_base_bit_for_bit(base, paradigm):
    clip = tiny_clip()
    images = with_synthetic(paradigm, clip=clip)
    nothing = config(base=base, fusion_weight=0, synthetic_weight=0)
    air, _ = learned(nothing, clip, images)
    plain, _ = learned(config(base), clip, replace(images, synthetic=None))
    assert air.method.keys() == plain.method.keys()
    assert all(torch.equal(air.method[key], plain.method[key]) for key in plain.method)
    assert [line["loss"] for line in air.lines] == [line["loss"] for line in plain.lines]
    for one, other in zip(air.history, plain.history, strict=True):
        assert (one.target_MC != other.target_MC).nnz == 0


@pytest.mark.parametrize("stop_after", [1, 3])
def test_killed_and_resumed_it_learns_the_same(stop_after):
    clip = tiny_clip()
    images = with_synthetic("ssl", clip=clip)
    whole, saved = learned(config(image_scale="matched"), clip, images)
    resumed, _ = learned(config(image_scale="matched"), clip, images, stop_after=stop_after)
    assert all(torch.equal(whole.method[key], resumed.method[key]) for key in whole.method)
    assert [stream.source for stream in from_bytes(saved[1]).streams] == ["train", "train", "synthetic"]
    for one, other in zip(whole.history, from_bytes(saved[-1]).history, strict=True):
        assert one.guesses.keys() == other.guesses.keys() == {"text", "images", "both"}
        assert all(torch.equal(one.guesses[name], other.guesses[name]) for name in one.guesses)


@pytest.mark.parametrize("paradigm", ["ul", "ssl", "trzsl"])
@pytest.mark.parametrize("prompt", ["text", "visual", "both"])
@pytest.mark.parametrize("base", ["cpl", "grip", "fpl"])
def test_every_base_prompt_and_paradigm_learns_from_both_kinds_of_images(base, prompt, paradigm):
    clip = tiny_clip()
    images = with_synthetic(paradigm, clip=clip, prompt=prompt)
    method = build_method(config(base=base, prompt=prompt, synthetic_weight=0.5), clip, CLASSES, images)
    for round_ in (1, 2):
        streams = method.begin_round(round_, over_unlabelled(method, images))
        method.enter_round(round_, streams)
        assert streams[-1].source == "synthetic"
        batches = {
            s.name: Batch(
                image_B=images.take(s.index_M[:6], method.input_kind, s.source),
                target_BC=batch_of(s.target_MC, torch.arange(min(6, len(s.index_M)))),
                index_B=s.index_M[:6],
            )
            for s in streams
        }
        loss = method(batches)
        with torch.no_grad():
            synthetic = batches.pop("synthetic")
            log_p_BC = method.prompted(synthetic.image_B).log_softmax(dim=1)
            expected = method(batches) - 0.5 * (log_p_BC * synthetic.target_BC).sum(dim=1).mean()
        torch.testing.assert_close(loss.detach(), expected)
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())
        for guess_U in method.pseudo_labels.guesses.values():
            assert len(guess_U) == len(images.unlabelled_U)
            assert set(guess_U.tolist()) <= set(images.candidate_classes.tolist())


def test_the_fused_probabilities_select_the_images_trzsl_among_unseen_classes_alone():
    clip = tiny_clip()
    images = with_synthetic("trzsl", clip=clip)
    method = build_method(config(fusion_weight=2.0, image_scale=30.0), clip, CLASSES, images)
    method.begin_round(1, None)
    feature_UD, unseen = images.feature_ND[images.unlabelled_U], images.candidate_classes
    text_UC = torch.from_numpy(zero_shot_probability(clip, images))[images.unlabelled_U]
    synthetic = images.synthetic
    weight_CD = class_weights(synthetic.feature_MD, synthetic.class_M, 4, prototypes="nearest", nearest=4)
    image_UK = (30 * feature_UD @ weight_CD[unseen].T).softmax(dim=1)
    q = fuse(restrict_probability(text_UC.numpy(), unseen.numpy()), image_UK.numpy(), 2.0)
    selection = cpl_select(cpl_candidates(ProbabilityBlocks.of(q), 0.75, 0.5), len(q) // (3 * 2), 2)
    pseudo = method.pseudo_labels
    assert pseudo.index_M.tolist() == images.unlabelled_U[selection.row_M].tolist()
    assert pseudo.class_M.tolist() == unseen[selection.class_M].tolist()
    assert pseudo.guesses["images"].tolist() == unseen[image_UK.argmax(dim=1)].tolist()
    assert pseudo.guesses["both"].tolist() == unseen[torch.from_numpy(q).argmax(dim=1)].tolist()
    assert pseudo.guesses["text"].tolist() == unseen[text_UC[:, unseen].argmax(dim=1)].tolist()


@pytest.mark.parametrize(("decay", "weight"), [(1.0, 2.0), (0.5, 0.5), (0.0, 0.0)])
def test_the_weight_of_the_images_decays_from_round_to_round(decay, weight):
    clip = tiny_clip()
    images = with_synthetic(clip=clip)
    method = build_method(config(fusion_weight=2.0, fusion_decay=decay, image_scale=30.0), clip, CLASSES, images)
    text_UC = torch.randn(len(images.unlabelled_U), 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    synthetic = images.synthetic
    weight_CD = class_weights(synthetic.feature_MD, synthetic.class_M, 4, prototypes="nearest", nearest=4)
    image_UC = (30 * images.feature_ND[images.unlabelled_U] @ weight_CD.T).softmax(dim=1)
    text = ProbabilityBlocks.of(text_UC.numpy())
    blocks, guesses = method.air.judge(3, text, images, images.feature_ND.__getitem__, None)
    both_UC = torch.from_numpy(np.concatenate([block for _, block in blocks]))
    torch.testing.assert_close(both_UC, (text_UC + weight * image_UC) / (1 + weight))
    assert guesses["both"].tolist() == both_UC.argmax(dim=1).tolist()


@pytest.mark.parametrize("settings", [{"centred": True}, {"image_scale": "matched"}])
def test_judging_block_by_block_is_judging_at_once(settings, monkeypatch):
    clip = tiny_clip()
    images = with_synthetic(clip=clip)
    text = zero_shot_probability(clip, images)

    def judged():
        method = build_method(config(fusion_weight=2.0, **settings), clip, CLASSES, images)
        blocks, guesses = method.air.judge(1, ProbabilityBlocks.of(text), images, images.feature_ND.__getitem__, None)
        return np.concatenate([block for _, block in blocks]), guesses

    at_once, guesses = judged()
    monkeypatch.setattr(probability_blocks, "CELLS_PER_BLOCK", 28)
    monkeypatch.setattr(probability_blocks, "CELLS_KEPT", 0)
    in_blocks, same = judged()
    np.testing.assert_allclose(in_blocks, at_once, rtol=1e-5)
    assert {name: guess.tolist() for name, guess in guesses.items()} == {n: g.tolist() for n, g in same.items()}


def test_visual_prompts_encode_both_kinds_of_images_anew():
    clip = tiny_clip()
    images = with_synthetic(clip=clip, prompt="visual")
    method = build_method(config(prompt="visual"), clip, CLASSES, images)
    method.restart(7)
    with torch.no_grad():
        feature_UD = method.prompted.visual(images.take(images.unlabelled_U, "pixels"))
        feature_MD = method.prompted.visual(images.synthetic.take(torch.arange(24), "pixels"))
    assert not torch.allclose(feature_MD, images.synthetic.feature_MD, atol=1e-3)
    method.begin_round(2, over_unlabelled(method, images))
    weight_CD = class_weights(feature_MD, images.synthetic.class_M, 4, prototypes="nearest", nearest=4)
    assert method.pseudo_labels.guesses["images"].tolist() == (feature_UD @ weight_CD.T).argmax(dim=1).tolist()


def test_synthetic_images_alone_need_one_round_and_no_real_image():
    clip = tiny_clip()
    images = with_synthetic("ssl", clip=clip)
    state, _ = learned(config(synthetic_only=True), clip, images)
    assert (state.round_, state.history) == (1, [])
    other, _ = learned(
        config(synthetic_only=True), clip, replace(images, feature_ND=F.normalize(-images.feature_ND + 1))
    )
    assert all(torch.equal(state.method[key], other.method[key]) for key in state.method)


def test_cleaning_drops_images_that_zero_shot_does_not_recognise():
    clip = tiny_clip()
    images = with_synthetic(clip=clip)
    feature_MD = F.normalize(torch.randn(24, 24, generator=torch.Generator().manual_seed(4)), dim=1)
    images = replace(images, synthetic=replace(images.synthetic, feature_MD=feature_MD))
    everything = build_method(config(), clip, CLASSES, images).air.kept_M
    cleaned = build_method(config(cleaning_top=2), clip, CLASSES, images).air.kept_M
    assert len(everything) == 24
    assert 0 < len(cleaned) < 24
    class_CD = clip.class_embeddings(CLASSES.names, CLASSES.templates[:1])
    best_MC = (images.synthetic.feature_MD @ class_CD.T).argsort(dim=1, descending=True)[:, :2].tolist()
    class_M = images.synthetic.class_M.tolist()
    good = {m for m in range(24) if class_M[m] in best_MC[m]}
    assert good <= set(cleaned.tolist())
    # A class of which nothing would be left keeps everything.
    empty = set(range(4)) - {class_M[m] for m in good}
    assert set(cleaned.tolist()) == good | {m for m in range(24) if class_M[m] in empty}


@pytest.mark.parametrize("paradigm", ["ul", "trzsl"])
def test_centred_features_are_those_less_the_mean_of_their_kind(paradigm):
    clip = tiny_clip()
    images = with_synthetic(paradigm, clip=clip)
    unseen, synthetic = images.candidate_classes, images.synthetic
    kept_M = torch.isin(synthetic.class_M, unseen)
    weights = []
    real_UD, made_MD = images.feature_ND[images.unlabelled_U], synthetic.feature_MD[kept_M]
    real_UD, made_MD = F.normalize(real_UD - real_UD.mean(0), dim=1), F.normalize(made_MD - made_MD.mean(0), dim=1)
    for c in unseen.tolist():
        feature_KD = made_MD[synthetic.class_M[kept_M] == c]
        weights.append(feature_KD[(feature_KD @ feature_KD.mean(0)).argsort(descending=True)[:4]].mean(0))
    expected_U = unseen[(real_UD @ torch.stack(weights).T).argmax(dim=1)]
    method = build_method(config(centred=True), clip, CLASSES, images)
    method.begin_round(1, None)
    assert method.pseudo_labels.guesses["images"].tolist() == expected_U.tolist()
    # An offset between the two kinds of images changes nothing any more.
    moved = replace(synthetic, feature_MD=synthetic.feature_MD + 0.5)
    other = build_method(config(centred=True), clip, CLASSES, replace(images, synthetic=moved))
    other.begin_round(1, None)
    assert other.pseudo_labels.guesses["images"].tolist() == expected_U.tolist()


@pytest.mark.parametrize("prompt", ["text", "visual"])
def test_fusion_at_test_is_the_weighted_sum_of_both_and_off_while_learning(prompt):
    clip = tiny_clip()
    images = with_synthetic(clip=clip, prompt=prompt)
    settings = config(prompt=prompt, fusion_at_test=True, fusion_weight=0.5, image_scale=20.0)
    method = build_method(settings, clip, CLASSES, images)
    image_B = images.take(images.unlabelled_U, method.input_kind)
    predictor = build_method(settings, clip, CLASSES, synthetic=images.synthetic)
    predictor.load_state_dict(method.state_dict())
    with torch.no_grad():
        text_BC = method.prompted(image_B).softmax(dim=1)
        torch.testing.assert_close(method.logits(image_B).softmax(dim=1), text_BC)
        feature_MD = images.synthetic.feature_MD
        if prompt == "visual":
            feature_MD = method.prompted.visual(images.synthetic.take(torch.arange(24), "pixels"))
        weight_CD = class_weights(feature_MD, images.synthetic.class_M, 4, prototypes="nearest", nearest=4)
        image_BC = (20 * method.prompted.image_features(image_B) @ weight_CD.T).softmax(dim=1)
        fused_BC = predictor.logits(image_B).softmax(dim=1)
    torch.testing.assert_close(fused_BC, (text_BC + 0.5 * image_BC) / 1.5)


@pytest.mark.parametrize("fusion_at_test", [False, True])
def test_a_learned_state_predicts_with_the_scale_that_the_last_round_found(fusion_at_test):
    clip = tiny_clip()
    images = with_synthetic(clip=clip)
    settings = config(fusion_at_test=fusion_at_test, image_scale="matched", centred=True)
    method = build_method(settings, clip, CLASSES, images)
    method.begin_round(1, None)
    predictor = build_method(settings, clip, CLASSES, synthetic=images.synthetic)
    predictor.load_state_dict(method.state_dict())
    if fusion_at_test:
        assert float(predictor.air.scale) == float(method.air.scale) != pytest.approx(clip.logit_scale)
        torch.testing.assert_close(predictor.air.centre_D, images.feature_ND[images.unlabelled_U].mean(dim=0))
    else:
        assert torch.equal(predictor.logits(images.feature_ND), method.logits(images.feature_ND))
        assert build_method(settings, clip, CLASSES).air is None  # synthetic images are not needed to predict


@pytest.mark.parametrize("base", ["cpl", "grip", "fpl"])
@pytest.mark.parametrize(("classes", "learned_from"), [("unseen", {1, 3}), ("all", {0, 1, 2, 3})])
def test_in_trzsl_synthetic_images_of_unseen_classes_are_learned_from(base, classes, learned_from):
    clip = tiny_clip()
    for paradigm, expected in (("trzsl", learned_from), ("ssl", {0, 1, 2, 3})):
        images = with_synthetic(paradigm, clip=clip)
        method = build_method(config(base=base, trzsl_classes=classes), clip, CLASSES, images)
        stream = method.begin_round(1, None)[-1]
        assert set(stream.target_MC.argmax(dim=1).tolist()) == expected
        assert images.synthetic.class_M[stream.index_M].tolist() == stream.target_MC.argmax(dim=1).tolist()


def test_fusion_at_test_of_synthetic_images_alone_knows_the_mean_and_the_scale():
    clip = tiny_clip()
    images = with_synthetic(clip=clip)
    alone = config(synthetic_only=True, fusion_at_test=True, centred=True, image_scale="matched")
    method = build_method(alone, clip, CLASSES, images)
    method.begin_round(1, None)
    torch.testing.assert_close(method.air.centre_D, images.feature_ND.mean(dim=0))
    assert float(method.air.scale) != clip.logit_scale
