import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.crops import CropSpec, boxes_of
from raydapt.artefacts.pixels import PixelRows
from raydapt.errors import UserError
from raydapt.methods.fair.method import TRAIN, Anchors, Fair
from raydapt.methods.fair.rules import fairness_loss
from raydapt.methods.fair.settings import FairSettings
from raydapt.methods.wca.method import Wca
from raydapt.models.views import strong_view, whole_view
from raydapt.settings.groups import TrainSettings
from raydapt.stages.crops import encode_with_crops
from raydapt.train.loop import fit
from raydapt.train.place import WorkerContext
from raydapt.train.sampling import StreamOrder, seed_of
from tests.methods.cases import CLASSES, NAMES, training_images
from tests.models.tiny import SIDE_PX, pixels, tiny_clip
from tests.train.test_loop import MemoryCheckpoints

TEXTS = {
    name: [f"a {name}.", f"many {name}, seen from above", f"part of {name}"][: 2 + i % 2]
    for i, name in enumerate(NAMES)
}
SETTINGS = FairSettings(descriptions=TEXTS, crops=3, top_k=2, image_px=SIDE_PX)
TRAIN_SETTINGS = TrainSettings(
    epochs=2,
    max_steps_per_round=4,
    batch_size=16,
    optimizer="adamw",
    learning_rate=1e-2,
    warmup_epochs=0,
    checkpoint_every_s=0,
)
PLACE = WorkerContext(device=torch.device("cpu"))


def images_with(clip, settings):
    images = training_images(clip=clip, with_pixels=True, n=40)
    assert isinstance(images.pixels, PixelRows)
    spec = CropSpec(crops=settings.crops, least_side=0.5, most_side=0.9)
    ids = [f"{i:016x}" for i in range(40)]
    return dataclasses.replace(
        images, crop_NKD=encode_with_crops(clip, images.pixels.take(torch.arange(40)), boxes_of(ids, spec)).clone()
    )


def trained(clip, settings, *, latest=None, train=TRAIN_SETTINGS, place=PLACE, checkpoints=None):
    images = images_with(clip, settings)
    method = Fair(clip, CLASSES, images, settings=settings, batch_size=train.batch_size)
    checkpoints = checkpoints or MemoryCheckpoints(latest=latest)
    fit(method, images, train, seed=1, place=place, checkpoints=checkpoints, log=lambda line: None)
    return method, checkpoints


def state_of(clip):
    return {name: tensor.clone() for name, tensor in clip.state_dict().items()}


@pytest.mark.parametrize("kind", ["clip", "custom", "timm"])
def test_training_changes_norms_and_anchors_and_never_the_frozen_model(kind):
    clip = tiny_clip(kind)
    before = state_of(clip)
    untrained = Fair(clip, CLASSES, None, settings=SETTINGS, batch_size=16)
    method, _ = trained(clip, SETTINGS)
    for name, tensor in clip.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    changed = [not torch.equal(p, q) for p, q in zip(method.parameters(), untrained.parameters(), strict=True)]
    assert all(changed)
    norms = [m for m in clip.model.visual.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(method.tower.norms) == 2 * len(norms) > 0
    assert not torch.allclose(method.logits(pixels(3)), untrained.logits(pixels(3)))


@pytest.mark.parametrize("crops", [0, 3])
def test_fixed_anchors_and_frozen_norms_change_nothing(crops):
    clip = tiny_clip()
    settings = dataclasses.replace(SETTINGS, learn_anchors=False, layer_norms=False, crops=crops)
    method, checkpoints = trained(clip, settings)
    assert method.rounds == 0
    untrained = Fair(clip, CLASSES, None, settings=settings, batch_size=16)
    feature = images_with(clip, SETTINGS).crop_NKD
    image = feature if crops else feature[:, 0]
    assert torch.equal(method.logits(image), untrained.logits(image))
    assert len(checkpoints.saved) == 1


def test_without_crops_it_is_plain_self_training_bit_for_bit():
    clip = tiny_clip()
    settings = dataclasses.replace(SETTINGS, crops=0)
    method, _ = trained(clip, settings)
    plain = Fair(clip, CLASSES, None, settings=settings, batch_size=16)
    images = images_with(clip, settings)
    prompt = clip.class_embeddings(NAMES, CLASSES.templates)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=TRAIN_SETTINGS.weight_decay)
    predicted = torch.full((4,), 0.25)
    order = StreamOrder(40, 16, seed=1, round_=1, name=TRAIN)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / 4))
        image = images.take(order.positions(step), "pixels")
        torch.manual_seed(seed_of(1, 1, step, 0))
        torch.randint(2**62, ())
        with torch.no_grad():  # the pseudo-label of the whole image, by the current model
            whole = plain.tower.encode(whole_view(image, SIDE_PX))
            logits, other = 100.0 * whole @ plain.anchors().T, 100.0 * whole @ prompt.T
            label = logits.argmax(1)
            weight = torch.exp(other.gather(1, label[:, None])[:, 0] - other.max(1).values)
        z = 100.0 * plain.tower.encode(strong_view(image, SIDE_PX, least_area=0.3, flip=True)) @ plain.anchors().T
        predicted = 0.5 * predicted + 0.5 * z.softmax(1).mean(0)
        loss = (weight * F.cross_entropy(z, label, reduction="none")).mean() - predicted.log().mean() / 0.5
        predicted = predicted.detach()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), TRAIN_SETTINGS.clip_grad_norm)
        optimizer.step()
    for learned, expected in zip(method.parameters(), plain.parameters(), strict=True):
        assert torch.equal(learned, expected)
    again, _ = trained(clip, settings)
    assert torch.equal(method.anchors.vector_MD, again.anchors.vector_MD)
    # Weights by margins see the crops even where they change no label.
    without, with_crops = (trained(clip, dataclasses.replace(s, weighting="margin"))[0] for s in (settings, SETTINGS))
    assert not torch.equal(without.anchors.vector_MD, with_crops.anchors.vector_MD)


def test_crops_draw_nothing_that_the_rest_draws(monkeypatch):
    clip = tiny_clip()
    drawn = {}
    for crops in (0, 3):
        method = Fair(clip, CLASSES, None, settings=dataclasses.replace(SETTINGS, crops=crops), batch_size=16)
        monkeypatch.setattr(method, "_learned_view", lambda image_B, c=crops: drawn.setdefault(c, torch.rand(5)))
        torch.manual_seed(3)
        with pytest.raises((RuntimeError, IndexError)):
            method({TRAIN: type("B", (), {"image_B": pixels(4)})()})
    assert torch.equal(drawn[0], drawn[3])


@pytest.mark.parametrize("kind", ["class", "description"])
@pytest.mark.parametrize("mean", ["plain", "weighted", "softmax"])
def test_anchors_start_as_means_of_the_descriptions(kind, mean):
    clip = tiny_clip()
    settings = dataclasses.replace(SETTINGS, anchors_per=kind, anchor_mean=mean)
    anchor_CD = Anchors(clip, CLASSES, settings)()
    prompt_CD = clip.class_embeddings(NAMES, CLASSES.templates)
    for c, name in enumerate(NAMES):
        embedding = clip.encode_text(TEXTS[name])
        expected = sum(w * e for w, e in zip(naive_weights(mean, embedding, prompt_CD[c]), embedding, strict=True))
        if kind == "class":
            expected = expected / expected.norm()
        torch.testing.assert_close(anchor_CD[c], expected, atol=1e-5, rtol=0)


def test_anchors_of_names_are_the_prompt_ensemble():
    clip = tiny_clip()
    anchor_CD = Anchors(clip, CLASSES, dataclasses.replace(SETTINGS, anchor_text="names", descriptions="auto"))()
    torch.testing.assert_close(anchor_CD, clip.class_embeddings(NAMES, CLASSES.templates), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_norms": False},
        {"layer_norms": False, "cached_view": "whole", "score_at_test": True},
        {"layer_norms": False, "cached_view": "crop"},
        {"layer_norms": False, "crops": 0},
        {"anchors_per": "description", "weighting": "margin"},
        {"alignment": 0.1, "fairness": 0.0},
        {"fairness_memory": 0.9},
        {"learn_anchors": False, "rand_augment": False},
        {"logit_scale": "model", "score_at_test": True, "weighting": "none"},
    ],
)
def test_every_switch_learns_and_resumes_bit_for_bit(changes):
    clip = tiny_clip()
    settings = dataclasses.replace(SETTINGS, **changes)
    whole, _ = trained(clip, settings)
    assert whole.rounds == 1
    killed = MemoryCheckpoints(die_after=1)
    images = images_with(clip, settings)
    method = Fair(clip, CLASSES, images, settings=settings, batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        fit(method, images, TRAIN_SETTINGS, seed=1, place=PLACE, checkpoints=killed, log=lambda line: None)
    resumed, _ = trained(clip, settings, latest=killed.saved[-1])
    for learned, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(learned, expected)


def test_scoring_at_test_does_not_depend_on_the_batch():
    method = Fair(tiny_clip(), CLASSES, None, settings=dataclasses.replace(SETTINGS, score_at_test=True), batch_size=16)
    image = pixels(6)
    torch.testing.assert_close(method.logits(image)[2:3], method.logits(image[2:3]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scored", [True, False])
def test_the_guard_is_told_which_features_are_scored(scored):
    clip = tiny_clip()
    frozen = dataclasses.replace(SETTINGS, layer_norms=False, score_at_test=scored)
    image = images_with(clip, SETTINGS).crop_NKD[:5]
    method = Fair(clip, CLASSES, None, settings=frozen, batch_size=16)
    if scored:
        read = method.read_features(image)
        torch.testing.assert_close(method.scale * read @ method.anchors().T, method.logits(image))
        wca = Wca(clip, CLASSES, settings=SETTINGS)
        torch.testing.assert_close(clip.logit_scale * wca.read_features(image) @ wca.text_CD.T, wca.logits(image))
        assert Wca(clip, CLASSES, settings=dataclasses.replace(SETTINGS, crops=0)).read_features(image[:, 0]) is None
    else:
        assert method.read_features(image) is None
    learned_tower = dataclasses.replace(frozen, layer_norms=True)
    assert Fair(clip, CLASSES, None, settings=learned_tower, batch_size=16).read_features(pixels(3)) is None


def test_alignment_reads_the_prototypes_of_the_epoch_before():
    clip = tiny_clip()
    method = Fair(clip, CLASSES, None, settings=dataclasses.replace(SETTINGS, alignment=0.5), batch_size=16)
    torch.testing.assert_close(method.prototype_CD, method.prompt_CD)
    method.sum_CD[1] = torch.arange(24.0)
    method.begin_epoch(1, 2, lambda function: torch.empty(0))
    torch.testing.assert_close(method.prototype_CD[1], F.normalize(torch.arange(24.0), dim=0))
    torch.testing.assert_close(method.prototype_CD[0], method.prompt_CD[0])
    assert not method.sum_CD.any()


def test_a_tower_without_layer_norms_is_one_sentence():
    clip = tiny_clip()
    clip.model.visual = torch.nn.Flatten()
    with pytest.raises(UserError, match=r"fair\.layer_norms"):
        Fair(clip, CLASSES, None, settings=SETTINGS, batch_size=16)


def test_pseudo_labels_are_made_in_single_precision_within_autocast():
    """In bf16 scores of 100 cosines are multiples of a half: labels of images between classes would flip."""
    clip = tiny_clip()
    method = Fair(clip, CLASSES, images_with(clip, SETTINGS), settings=SETTINGS, batch_size=16)
    image = pixels(40)
    label, weight, whole = method.pseudo_label(image, 7)
    with torch.autocast("cpu", torch.bfloat16):
        label_16, weight_16, whole_16 = method.pseudo_label(image, 7)
    assert torch.equal(label, label_16)
    assert torch.equal(weight, weight_16)
    assert torch.equal(whole, whole_16)
    assert {weight_16.dtype, whole_16.dtype} == {torch.float32}


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_the_fairness_term_follows_the_moving_average(memory):
    logits, past = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), torch.full((7,), 1 / 7)
    for _ in range(3):
        share = [sum(float(logits[b].softmax(0)[c]) for b in range(5)) / 5 for c in range(7)]
        mixed = [memory * float(past[c]) + (1 - memory) * share[c] for c in range(7)]
        loss, past = fairness_loss(logits, past, memory)
        assert float(loss) == pytest.approx(-sum(map(math.log, mixed)) / 7 / (1 - memory), rel=1e-5)
        assert past.tolist() == pytest.approx(mixed, rel=1e-5)
        logits = 2 * logits


def test_classes_that_a_batch_cannot_hold_cost_less_with_a_memory():
    """500 classes, 64 sure and right images a batch: one batch alone pulls every image towards the absent classes."""
    generator, n_classes = torch.Generator().manual_seed(2), 500
    force = {}
    for memory in (0.0, 0.5, 0.9):
        past, pulls = torch.full((n_classes,), 1 / n_classes), []
        generator.manual_seed(2)
        for _ in range(20):
            class_B = torch.randint(n_classes, (64,), generator=generator)
            logits = (12 * F.one_hot(class_B, n_classes)).float().requires_grad_()
            loss, past = fairness_loss(logits, past, memory)
            (gradient,) = torch.autograd.grad(loss, logits)
            pulls.append(float(gradient.gather(1, class_B[:, None]).clamp_min(0).sum()))
        force[memory] = sum(pulls[10:]) / 10
    assert force[0.9] < force[0.5] < 0.9 * force[0.0]


def naive_weights(kind, embedding, prompt):
    cosine = [float(row @ prompt) for row in embedding]
    value = {"plain": [1.0] * len(cosine), "weighted": cosine}.get(kind) or [math.exp(math.e**2 * x) for x in cosine]
    return [v / sum(value) for v in value]


@pytest.mark.parametrize("kind", ["plain", "weighted", "softmax"])
def test_wca_compares_the_normalised_means_of_crops_and_descriptions(kind):
    clip = tiny_clip()
    settings = dataclasses.replace(SETTINGS, anchor_mean=kind, temperature=0.0183)
    feature = images_with(clip, settings).crop_NKD[:5]
    method = Wca(clip, CLASSES, settings=settings)
    logits, prompt = method.logits(feature), clip.class_embeddings(NAMES, CLASSES.templates)
    torch.testing.assert_close(method.text_CD.norm(dim=1), torch.ones(4))
    for b in range(5):
        similarity = [float(feature[b, 1 + i] @ feature[b, 0]) for i in range(3)]
        kept = sorted(range(3), key=lambda i: -similarity[i])[:2]
        rho = torch.tensor([similarity[i] / 0.0183 for i in kept]).softmax(0)
        image = sum(r * feature[b, 1 + i] for r, i in zip(rho, kept, strict=True))
        for c, name in enumerate(NAMES):
            embedding = clip.encode_text(TEXTS[name])
            text = sum(v * e for v, e in zip(naive_weights(kind, embedding, prompt[c]), embedding, strict=True))
            expected = clip.logit_scale * float(image @ text / image.norm() / text.norm())
            assert float(logits[b, c]) == pytest.approx(expected, abs=1e-3)


def test_wca_without_unit_means_is_the_double_sum_over_crops_and_descriptions():
    clip = tiny_clip()
    settings = dataclasses.replace(SETTINGS, anchor_mean="weighted", temperature=0.1)
    feature = images_with(clip, settings).crop_NKD[:5]
    logits = Wca(clip, CLASSES, settings=settings, unit_means=False).logits(feature)
    prompt = clip.class_embeddings(NAMES, CLASSES.templates)
    for b in range(5):
        similarity = [float(feature[b, 1 + i] @ feature[b, 0]) for i in range(3)]
        kept = sorted(range(3), key=lambda i: -similarity[i])[:2]
        rho = torch.tensor([similarity[i] / 0.1 for i in kept]).softmax(0)
        for c, name in enumerate(NAMES):
            e = clip.encode_text(TEXTS[name])
            v = [float(row @ prompt[c]) for row in e]
            score = sum(
                float(r) * v[d] / sum(v) * float(feature[b, 1 + i] @ e[d])
                for r, i in zip(rho, kept, strict=True)
                for d in range(len(e))
            )
            assert float(logits[b, c]) == pytest.approx(clip.logit_scale * score, abs=1e-3)


def test_crops_of_an_image_depend_on_it_alone_and_few_are_the_first_of_many():
    few, many = (CropSpec(crops=n, least_side=0.5, most_side=0.9) for n in (3, 8))
    ids = ["00000000000000aa", "ffffffffffffffff"]
    assert torch.equal(boxes_of(ids, many)[:, :3], boxes_of(ids, few))
    assert torch.equal(boxes_of(ids[1:], few)[0], boxes_of(ids, few)[1])
    assert not torch.equal(boxes_of(ids, few)[0], boxes_of(ids, few)[1])


def test_a_run_of_an_earlier_release_is_loaded_without_its_moving_average():
    clip = tiny_clip()
    method = Fair(clip, CLASSES, None, settings=SETTINGS, batch_size=4)
    state = {name: tensor for name, tensor in method.state_dict().items() if name != "predicted_C"}
    again = Fair(clip, CLASSES, None, settings=SETTINGS, batch_size=4)
    again.load_state_dict(state)
    assert torch.equal(again.predicted_C, torch.full((len(NAMES),), 1 / len(NAMES)))


def test_images_that_are_labelled_whole_learn_as_without_crops_and_may_be_answered_from_crops():
    clip = tiny_clip()
    settings = dataclasses.replace(SETTINGS, layer_norms=False, cached_view="whole", score_at_test=True)
    without, _ = trained(clip, dataclasses.replace(settings, crops=0))
    whole, _ = trained(clip, dataclasses.replace(settings, labels_from="whole"))
    # The same up to rounding: whole images are encoded in one batch with their crops.
    torch.testing.assert_close(whole.anchors(), without.anchors(), atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(64, 4, whole.anchors().shape[1], generator=generator), dim=-1)
    feature_BD = whole._composite(image[:, 0], image[:, 1:])
    by_whole, by_crops = (feature @ whole.anchors().T for feature in (image[:, 0], feature_BD))
    assert not torch.equal(by_whole.argmax(1), by_crops.argmax(1))
    assert torch.equal(whole.pseudo_label(image, 0)[0], by_whole.argmax(1))
    torch.testing.assert_close(whole.logits(image), whole.scale * by_crops)
