"""LatteCLIP as a method: a step against a loop over images, what is learned, resuming, faults."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, captions_of
from raydapt.data.classes import fill_template
from raydapt.data.splits import adapted_splits
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.methods.contract import Batch
from raydapt.methods.latteclip.method import IMAGES
from raydapt.methods.latteclip.published import LENGTHS
from raydapt.methods.latteclip.resolve import caption_kinds, with_published_warmup
from raydapt.methods.table import spec_of
from tests.methods.cases import CLASSES, NAMES, tiny_clip, training_images
from tests.methods.latteclip_cases import (
    SETTINGS,
    TRAIN,
    captioned_images,
    captions,
    latteclip,
    train_latteclip,
)
from tests.models.tiny import EMBED_DIM
from tests.train.test_loop import MemoryCheckpoints

TUNES = ("full", "ln", "lora", "text_prompt", "visual_prompt")


def change(**settings):
    return dataclasses.replace(SETTINGS, **settings)


def batch_of(images, method, index):
    index_B = torch.tensor(index)
    return {
        IMAGES: Batch(
            image_B=images.take(index_B, method.input_kind), target_BC=torch.zeros(len(index), 0), index_B=index_B
        )
    }


def spread(method):
    """Prototypes away from their start, and P0 elsewhere, so that one taken for the other is seen."""
    generator = torch.Generator().manual_seed(7)
    for buffer in (method.prototype_CD, method.epoch_prototype_CD):
        buffer.copy_(F.normalize(buffer + 0.3 * torch.randn(buffer.shape, generator=generator), dim=1))
    method.epoch.fill_(1)


SWITCHES = [
    {},
    {"use_image_caption": False},
    {"use_batch_caption": False},
    {"use_template_caption": False},
    {"use_image_caption": False, "use_batch_caption": False},
    {"use_finetune_pseudolabel": False},
    {"use_zeroshot_pseudolabel": False},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(s) or "all")
def test_a_step_is_what_a_loop_over_its_images_says(switches):
    clip = tiny_clip()
    images, settings = captioned_images(clip), change(alpha=0.3, **switches)
    group = captions_of(["all groups alike"] * 20 + [None] * 4)  # nothing to draw
    images = dataclasses.replace(images, group_captions=group)
    method = latteclip(clip, images, settings)
    spread(method)
    prototype, frozen = method.prototype_CD.clone(), method.epoch_prototype_CD.clone()
    index = [0, 1, 5, 9, 13, 20, 23]  # seven, some without a caption
    loss = method(batch_of(images, method, index))
    method.after_step()

    text_of = lambda text: clip.encode_text([text])[0]  # noqa: E731
    zero_shot = clip.class_embeddings(NAMES, CLASSES.templates[:1])
    singles = [None if line is None else line.splitlines()[0] for line in captions(24, "kind")]
    expected, moved = 0.0, {c: [] for c in range(4)}
    for branch in ("F", "Z"):
        if not (settings.use_finetune_pseudolabel if branch == "F" else settings.use_zeroshot_pseudolabel):
            continue
        target = []
        for i in index:
            feature = images.feature_ND[i]
            scores = feature @ (prototype if branch == "F" else zero_shot).T
            c = int(scores.argmax())
            own_class = int((feature @ zero_shot.T).argmax())
            class_has_group = any(int((images.feature_ND[j] @ zero_shot.T).argmax()) == own_class for j in range(20))
            texts = []
            if settings.use_template_caption:
                texts.append(text_of(fill_template(CLASSES.templates[0], NAMES[c])))
            if settings.use_image_caption and singles[i] is not None:
                texts.append(text_of(singles[i]))
            if settings.use_batch_caption and class_has_group:
                texts.append(text_of("all groups alike"))
            weights = []
            for text in texts:
                best = sorted((float(text @ p) for p in frozen), reverse=True)
                weights.append(best[0] - best[1] + 1e-6)
            mixed = sum(w * t for w, t in zip(weights, texts, strict=True)) / sum(weights) if texts else prototype[c]
            target.append(prototype[c] + 0.3 * (mixed - prototype[c]))
            moved[c].append(target[-1])
        logits = clip.logit_scale * images.feature_ND[index] @ torch.stack(target).T
        own = torch.arange(len(index))
        expected = expected + (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-4)
    for c, mine in moved.items():
        wanted = F.normalize(sum(mine) / len(mine), dim=0) if mine else prototype[c]
        torch.testing.assert_close(method.prototype_CD[c], wanted, rtol=1e-4, atol=1e-5)
    shares = method.share_EK[0, :3] / method.share_EK[0, 3]
    assert float(shares.sum()) == pytest.approx(1, abs=1e-4)
    for source, name in enumerate(("use_template_caption", "use_image_caption", "use_batch_caption")):
        assert (float(shares[source]) > 0) == getattr(settings, name)


@pytest.mark.parametrize("tune", TUNES)
def test_every_kind_of_learning_changes_what_it_learns_and_nothing_else(tune):
    clip = tiny_clip()
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    settings = change(tune=tune, augmentation=True, alpha=0.1)
    train = dataclasses.replace(TRAIN, epochs=1)
    method = train_latteclip(clip, MemoryCheckpoints(), settings, train=train)
    start = dict(latteclip(clip, None, settings, train=train).named_parameters())
    for name, parameter in method.named_parameters():
        assert not torch.equal(parameter, start[name]) or not parameter.requires_grad, name
    assert any(parameter.requires_grad for parameter in method.parameters())
    for name, tensor in clip.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert bool((method.drift_EC[0] > 0).any())
    restored = latteclip(clip, None, settings, train=train)
    restored.load_state_dict(method.state_dict())
    images = captioned_images(clip)
    image = images.take(torch.arange(9), method.input_kind)
    assert torch.equal(restored.logits(image), method.logits(image))
    pixel = images.take(torch.arange(9), "pixels")
    torch.testing.assert_close(
        spec_of("latteclip").deployable(method, clip)(pixel), method.logits(image), rtol=1e-4, atol=1e-4
    )
    assert method.input_kind == ("features" if tune == "text_prompt" else "pixels")


@pytest.mark.parametrize("kind", ["custom", "timm"])
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_other_towers_learn_too(kind, tune):
    clip = tiny_clip(kind)
    train = dataclasses.replace(TRAIN, max_steps_per_round=1)
    method = train_latteclip(clip, MemoryCheckpoints(), change(tune=tune), train=train)
    start = latteclip(clip, None, change(tune=tune), train=train)
    changed = [not torch.equal(p, q) for p, q in zip(method.parameters(), start.parameters(), strict=True)]
    assert any(changed)


def test_only_the_image_tower_learns_and_texts_are_encoded_once():
    clip = tiny_clip()
    images = captioned_images(clip)
    method = latteclip(clip, images, change(towers="image"))
    norms = [m for m in clip.model.visual.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(method.towers.learned) == 2 * len(norms)
    method.enter_round(1, [])
    method._encode_tokens = None
    spread(method)
    method(batch_of(images, method, [0, 1, 2])).backward()
    both = latteclip(clip, images, change())
    spread(both)
    method.enter_round, both.enter_round = None, None
    loss, other = (m(batch_of(images, m, [0, 3, 6])) for m in (method, both))
    assert float(loss.detach()) == pytest.approx(float(other.detach()), rel=1e-3)


@pytest.mark.parametrize("tune", ["ln", "text_prompt"])
def test_alpha_zero_leaves_the_prototypes_where_they_started(tune):
    clip = tiny_clip()
    method = train_latteclip(clip, MemoryCheckpoints(), change(alpha=0.0, tune=tune))
    torch.testing.assert_close(method.prototype_CD, method.start_CD, rtol=0, atol=1e-5)
    moved = train_latteclip(clip, MemoryCheckpoints(), change(alpha=0.1, tune=tune))
    assert float(moved.drift_EC[-1].max()) > 1e-4


def test_without_any_caption_it_is_the_template_alone():
    clip = tiny_clip()
    images = captioned_images(clip)
    bare = dataclasses.replace(images, image_captions=None, group_captions=captions_of([None] * 24))
    off = change(use_image_caption=False, use_batch_caption=False)
    first = train_latteclip(clip, MemoryCheckpoints(), change(), images=bare)
    second = train_latteclip(clip, MemoryCheckpoints(), off, images=images)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]) or tensor.isnan().any(), name


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("die_after", [2, 3])
def test_killed_and_resumed_it_learns_the_same_bit_for_bit(tune, die_after, monkeypatch):
    monkeypatch.setattr("raydapt.train.loop._STEPS_BETWEEN_CLOCKS", 1)  # checkpoints within an epoch
    clip, settings = tiny_clip(), change(tune=tune, augmentation=True, alpha=0.2)
    whole = train_latteclip(clip, MemoryCheckpoints(), settings)
    killed = MemoryCheckpoints(die_after=die_after)
    with pytest.raises(KeyboardInterrupt):
        train_latteclip(clip, killed, settings)
    resumed = train_latteclip(clip, MemoryCheckpoints(latest=killed.saved[-1]), settings)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert not torch.equal(whole.prototype_CD, whole.epoch_prototype_CD)


def test_the_published_fault_needs_a_batch_as_large_as_the_features_are_wide():
    clip = tiny_clip()
    images, settings = captioned_images(clip, n=EMBED_DIM), change(legacy_broadcast=True, alpha=0.3)
    method, intended = latteclip(clip, images, settings), latteclip(clip, images, change(alpha=0.3))
    with pytest.raises(UserError, match=f"legacy_broadcast=true with 7 images.*batch_size={EMBED_DIM}"):
        method(batch_of(images, method, list(range(7))))
    losses = []
    for each in (method, intended):
        spread(each)
        torch.manual_seed(0)
        losses.append(float(each(batch_of(images, each, list(range(EMBED_DIM)))).detach()))
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_the_logit_scale_is_learned_by_full_alone_and_kept_below_100():
    clip = tiny_clip()
    method = latteclip(clip, None, change(tune="full"))
    with torch.no_grad():
        method.towers.log_scale.fill_(9.0)
    method.after_step()
    assert float(method.scale.detach()) == pytest.approx(100, rel=1e-4)
    assert method.towers.log_scale.requires_grad
    assert not latteclip(clip, None, change()).towers.log_scale.requires_grad


def test_images_without_captions_and_pixels_suffice_for_a_text_prompt():
    clip = tiny_clip()
    images = training_images(n=24, clip=clip)
    method = train_latteclip(clip, MemoryCheckpoints(), change(tune="text_prompt"), images=images)
    assert method.logits(images.feature_ND).shape == (24, 4)


def test_pseudo_labels_are_made_in_single_precision_within_autocast():
    """In bf16 neighbouring cosines are equal, and the first class of them would win."""
    clip = tiny_clip()
    method = latteclip(clip, captioned_images(clip))
    close_CD = F.normalize(method.start_CD[:1] + 1e-3 * torch.randn(4, EMBED_DIM), dim=1)
    method.prototype_CD.copy_(close_CD)
    feature_BD, index_B = F.normalize(torch.randn(24, EMBED_DIM), dim=1), torch.arange(24)
    expected_B = torch.tensor(
        [max(range(4), key=lambda c, v=v: float(v @ method.class_embeddings()[c])) for v in feature_BD]
    )
    with torch.autocast("cpu", torch.bfloat16):
        finetuned_B = method._pseudo_labels(feature_BD, index_B)[0]
    assert torch.equal(finetuned_B, expected_B)


def test_the_protocol_has_the_published_splits_and_warm_up():
    """18,900 images of EuroSAT in batches of 512 warm up for 40 steps, in the authors' script for it."""
    assert adapted_splits(["train"], "latteclip") == ["train", "val"]
    assert adapted_splits(["unlabeled"], "latteclip") == ["unlabeled"]
    assert adapted_splits(["train"], "coop") == ["train"]
    config = load_config(None, ["method=latteclip", "data.source=eurosat"])
    assert with_published_warmup(config) == config
    changed = with_published_warmup(replace(config, data=replace(config.data, protocol="latteclip")))
    assert round(changed.train.warmup_epochs * (18_900 // 512)) == 40
    assert changed.train.epochs == LENGTHS["eurosat"].epochs == 15


def test_the_job_named_after_the_method_reads_both_kinds_of_captions():
    assert caption_kinds(load_config(None, ["method=latteclip"])) == (IMAGE_CAPTIONS, GROUP_CAPTIONS)
