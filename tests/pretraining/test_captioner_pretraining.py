"""The job that trains the miniature captioner: sentences, looks, masks, batches, resuming, and a tiny run."""

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPVisionModel, LlavaForConditionalGeneration

from pretraining import captioner_pretraining
from pretraining.captioner_batches import canvas_of, encode_exchanges
from pretraining.captioner_evaluation import groups_of, names_it, share_right
from pretraining.captioner_looks import colour_names, digit_words, lean_of, picture_words, shared_words
from pretraining.captioner_model import (
    IMAGE_TOKEN,
    LLAVA_WEIGHTS_FILE,
    SAVED_PREFIXES,
    CaptionerShape,
    build_captioner,
    build_tokenizer,
    captioner_folder,
    clip_vision_weights,
    conversation,
    saved_name,
)
from pretraining.captioner_sentences import (
    FITTING,
    GROUP_WORDINGS,
    MEDIA,
    THINGS,
    WORDINGS,
    Exchange,
    exchange_about,
    fill,
    human_exchange,
    question_about,
    tokenizer_texts,
)
from pretraining.captioner_settings import CaptionerPretraining, read_settings
from pretraining.captioner_start import WORD_GAIN, start_words
from pretraining.captioner_trainer import CaptionerPretrainer, CaptioningTask
from pretraining.diffusion_batches import STYLES
from pretraining.diffusion_model import load_clip
from raydapt.errors import UserError
from tests.models.tiny_captioner import SHAPE, save_tiny_captioner
from tests.pretraining.test_clip_pretraining import write_parquet

LOOKS = {
    "colour": "green", "light": "dark", "contrast": "strong", "detail": "smooth",
    "weight": "thin", "lean": "right", "polarity": "white on black",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CaptionerPretraining:
    """A job over a few random images, with digits in the cache so that no fonts are needed."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("captioner")
    pretrain, cache = root / "data" / "pretrain", root / "storage" / "cache"
    pretrain.mkdir(parents=True)
    cache.mkdir(parents=True)
    photos = [([name], name, "tiny-imagenet") for name in ("dog", "Chihuahua", "cat")] * 20
    write_parquet(pretrain / "photos.parquet", photos, 48)
    aerial = [(["river", "stream"], "river", "resisc12"), (["forest", "trees"], "forest", "rsscn7")] * 20
    write_parquet(pretrain / "aerial.parquet", aerial, 64)
    write_parquet(pretrain / "flickr8k.parquet", [(["a dog runs ."], None, "flickr8k")] * 2, 48)
    faces = np.random.default_rng(1).integers(0, 256, (4, 10, 48, 48), dtype=np.uint8)
    np.save(cache / "digits-train.npy", faces)
    return CaptionerPretraining(
        data=str(root / "data"), storage=str(root / "storage"), name="tiny", samples=64, batch_size=16,
        vocabulary_size=600, group_share=0.25, scene_share=0.1, log_every_steps=1, checkpoint_every_s=1e9,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(tokenizer_texts(["dog", "ice cream"]), vocabulary_size=500, context_length=128)


def test_the_committed_job_is_valid() -> None:
    job = Path(__file__).parents[2] / "pretraining" / "jobs" / "captioner.yaml"
    settings = read_settings([str(job), "seed=7"])
    assert settings == dataclasses.replace(CaptionerPretraining(), seed=7)
    assert sum(settings.shares.values()) == pytest.approx(1.0)
    assert set(settings.shares) == set(STYLES) == set(WORDINGS) == set(GROUP_WORDINGS)
    assert set(FITTING) == set(MEDIA) == {*STYLES, "scenes"}
    with pytest.raises(UserError, match=r"captioner\.yaml"):
        read_settings([])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("looks", [LOOKS, {"polarity": "black on white"}], ids=["all", "few"])
def test_answers_are_short_sentences_that_name_the_class(style: str, looks: dict[str, str]) -> None:
    for wording in (*WORDINGS[style], *GROUP_WORDINGS[style]):
        for name in ("ice cream", "dog"):
            text, (start, end) = fill(wording, name, looks)
            assert text[start:end] == name
            assert len(text.split()) < 20
            assert text.endswith(".")
            assert not {"  ", " .", " ,", ",,", ",.", "\0", "\1"} & {text[at : at + 2] for at in range(len(text))}
            assert " a ice" not in f" {text}"
            assert " an dog" not in f" {text}"


def test_questions_are_those_of_the_paper() -> None:
    asked = {question_about("satellite", Random(seed), group=False) for seed in range(200)}
    assert "Describe the land use in the satellite image concisely, less than 20 words." in asked
    asked = {question_about("satellite", Random(seed), group=True) for seed in range(200)}
    expected = "Describe the common visual attributes of the land use in all the satellite images concisely"
    assert f"{expected}, less than 20 words." in asked
    hinted = question_about("photos", Random(0), group=False, hint="rose")
    assert hinted.startswith("Describe the rose ")
    assert {"flower", "food", "aircraft", "pet", "car", "texture", "action of the person"} <= set(THINGS)


def test_human_captions_are_shortened() -> None:
    one = human_exchange(["A Dog , and " + "a cat " * 20 + "."], Random(0))
    assert one.answer.startswith("a dog, and a cat")
    assert len(one.answer.split()) < 20
    assert one.name_span == (0, 0)


def test_looks_are_read_from_the_pixels() -> None:
    flat = torch.tensor([[1.0, 0, 0], [0, 0.8, 0], [0.1, 0.1, 0.9], [0.5, 0.5, 0.5], [0.4, 0.2, 0.05], [1.0, 0.9, 0]])
    images = flat[:, :, None, None].expand(-1, 3, 32, 32)
    assert colour_names(images) == ["red", "green", "blue", "grey", "brown", "yellow"]
    grays = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    assert [one["light"] for one in picture_words(grays)] == ["dark", "", "bright"]
    checkers = ((torch.arange(32)[:, None] // 4 + torch.arange(32) // 4) % 2).float().expand(1, 3, 32, 32)
    assert picture_words(checkers)[0] | {"colour": "", "light": ""} == {
        "colour": "", "light": "", "contrast": "strong", "detail": "detailed",
    }  # fmt: skip


def test_digits_are_described_by_their_ink() -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    inside = (rows > 4) & (rows < 27)
    stem = (((columns - 16).abs() < 2) & inside).float()
    right = (((columns - 16 + (rows - 16) * 0.4).abs() < 2) & inside).float()  # further right higher up
    bold = (((columns - 16).abs() < 9) & inside).float()
    images = torch.stack([stem, right, 1 - right.flip(1), bold])[:, None].expand(-1, 3, -1, -1)
    words = digit_words(images)
    assert [one["lean"] for one in words] == ["upright", "right", "left", "upright"]
    assert [one["polarity"] for one in words] == ["white on black"] * 2 + ["black on white", "white on black"]
    assert words[3]["weight"] == "bold"
    assert lean_of(right[None]).item() == pytest.approx(0.4, abs=0.05)


def test_a_group_shares_what_three_of_four_have() -> None:
    words = [
        {"colour": one, "light": two} for one, two in (("red", "dark"), ("red", ""), ("red", "dark"), ("blue", ""))
    ]
    assert shared_words(words) == {"colour": "red", "light": ""}


def test_groups_are_tiled_on_black() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    canvas = canvas_of(colours.view(1, 4, 3, 1, 1).expand(1, 4, 3, 32, 32), 64)
    assert canvas.shape == (1, 3, 64, 64)
    quarters = [canvas[0, :, y, x].tolist() for y in (10, 50) for x in (10, 50)]
    assert torch.tensor(quarters) == pytest.approx(colours, abs=1e-5)
    assert not canvas[..., 31:33].any()
    assert not canvas[..., 31:33, :].any()


def test_the_loss_counts_the_answer_alone(tokenizer: Any) -> None:
    exchanges = [
        Exchange(question="Describe the dog.", answer="a photo of an ice cream, mostly red.", name_span=(14, 23)),
        Exchange(question="Describe the common texture of all.", answer="dog seen.", name_span=(0, 3)),
        Exchange(question="Describe it.", answer="a dog runs.", name_span=(0, 0)),
    ]
    token_NL, present_NL, weight_NL = encode_exchanges(tokenizer, exchanges, image_tokens=5, name_weight=3.0)
    for one, tokens, present, weight in zip(exchanges, token_NL, present_NL, weight_NL, strict=True):
        assert tokenizer.decode(tokens[weight > 0]).strip() == one.answer + tokenizer.eos_token
        assert tokenizer.decode(tokens[weight == 3.0]).strip() == one.answer[slice(*one.name_span)]
        assert set(weight.unique().tolist()) <= {0.0, 1.0, 3.0}
        assert not weight[present == 0].any()
        whole = tokenizer.apply_chat_template(conversation(one.question, one.answer), tokenize=False)
        expanded = tokenizer(whole.replace(IMAGE_TOKEN, IMAGE_TOKEN * 5)).input_ids
        assert tokens[present == 1].tolist() == expanded


def test_the_template_takes_texts_and_parts(tokenizer: Any) -> None:
    parts = tokenizer.apply_chat_template(conversation("what?"), tokenize=False, add_generation_prompt=True)
    plain = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{IMAGE_TOKEN}\nwhat?"}], tokenize=False, add_generation_prompt=True
    )
    assert parts == plain == f"{tokenizer.bos_token}USER: {IMAGE_TOKEN}\nwhat? ASSISTANT:"
    ids = tokenizer(parts).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == 1


def test_the_loss_is_a_weighted_mean() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a dog"], vocabulary_size=300, context_length=64)
    task = CaptioningTask(build_captioner(tokenizer, SHAPE))
    exchanges = [Exchange(question="what?", answer="a dog.", name_span=(2, 5)),
                 Exchange(question="what is it?", answer="dogs.", name_span=(0, 4))]  # fmt: skip
    token_NL, present_NL, weight_NL = encode_exchanges(
        tokenizer, exchanges, image_tokens=SHAPE.image_tokens, name_weight=2.0
    )
    images = torch.randn(2, 3, SHAPE.image_px, SHAPE.image_px)
    with torch.no_grad():
        loss, _ = task(images, token_NL, present_NL, weight_NL)
        total, weights = 0.0, 0.0
        for image, tokens, present, weight in zip(images, token_NL, present_NL, weight_NL, strict=True):
            kept = tokens[present == 1][None]  # alone, without padding
            logits = task.model(input_ids=kept, pixel_values=image[None]).logits[0]
            for at in range(1, kept.shape[1]):
                total += float(weight[at]) * float(F.cross_entropy(logits[at - 1], kept[0, at]))
                weights += float(weight[at])
    assert float(loss) == pytest.approx(total / weights, rel=1e-4)


def test_the_tower_sees_what_the_clip_sees() -> None:
    shape = CaptionerShape()
    tokenizer = build_tokenizer(["a"], vocabulary_size=300, context_length=64)
    tower: Any = CLIPVisionModel(build_captioner(tokenizer, shape).config.vision_config)
    tower.load_state_dict(clip_vision_weights(shape))
    clip = load_clip()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        assert clip.visual.proj is not None
        states = tower.eval()(larger).pooler_output @ clip.visual.proj
        assert torch.allclose(states, clip.visual(images), atol=1e-4)
    with pytest.raises(ValueError, match="tower"):
        clip_vision_weights(dataclasses.replace(shape, vision_width=64))
    assert isinstance(clip, open_clip.CLIP)


def test_a_saved_captioner_has_the_published_names(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = save_tiny_captioner(tmp_path / "captioner")
    with safe_open(Path(folder) / LLAVA_WEIGHTS_FILE, "pt") as weights:
        assert all(any(name.startswith(one) for one in SAVED_PREFIXES.values()) for name in weights.keys())  # noqa: SIM118
    model, found = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder).chat_template
    with pytest.raises(ValueError, match="no part"):
        saved_name("elsewhere.weight")
    assert captioner_folder("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_counting_names() -> None:
    assert names_it("A photo of a dog.", ("Chihuahua", "dog"))
    assert names_it("four dogs", ("dog",))
    assert not names_it("a hotdog stand", ("dog",))
    assert share_right(["a cat", "the digit 3."], [("dog",), ("three", "3")]) == 0.5
    from PIL import Image

    images = [Image.new("RGB", (8 + at, 8), (255, 0, 0)) for at in range(9)]
    canvases, names = groups_of(images, [("a",)] * 5 + [("b",)] * 4)
    assert names == [("a",), ("b",)]
    assert canvases[0].size == (672, 672)
    assert canvases[0].getpixel((336, 336)) == (0, 0, 0)
    assert canvases[0].getpixel((163, 163)) == (255, 0, 0)


def test_a_batch_depends_on_seed_rank_and_step_alone(tiny: CaptionerPretraining) -> None:
    trainer = CaptionerPretrainer(tiny)
    batches = trainer.batches
    first, again, next_one = batches.make(3), batches.make(3), batches.make(4)
    assert torch.equal(first.images_NCHW, again.images_NCHW)
    assert torch.equal(first.token_NL, again.token_NL)
    assert not torch.equal(first.images_NCHW, next_one.images_NCHW)
    assert first.images_NCHW.shape == (16, 3, 64, 64)
    assert first.token_NL.shape == first.present_NL.shape == first.weight_NL.shape
    images, exchanges = batches.draw(torch.Generator().manual_seed(0), Random(0))
    assert len(images) == len(exchanges) == 16
    assert sum("common visual attributes" in one.question for one in exchanges) == 4
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0
    held_out_N = torch.from_numpy(batches._images.photos.held_out_N)
    assert float(batches._weight_N["photos"][held_out_N].sum()) == 0.0
    drawn = torch.cat(list(batches._members.values()))
    assert not set(held_out_N.nonzero().squeeze(1).tolist()) & {
        at
        for concept, own in batches._members.items()
        if concept in batches._concept_N["photos"]
        for at in own.tolist()
    }
    assert len(drawn) == int((~held_out_N).sum()) + int((batches._weight_N["aerial"] > 0).sum())


def test_what_is_answered_depends_on_the_seed() -> None:
    said = {exchange_about("photos", "dog", LOOKS, Random(seed), group=False).answer for seed in range(40)}
    assert len(said) == len(WORDINGS["photos"])


def test_training_starts_from_what_the_clip_knows(tiny: CaptionerPretraining) -> None:
    trainer = CaptionerPretrainer(tiny)
    model: Any = trainer.model
    images = trainer.batches.make(0).images_NCHW
    clip = load_clip()
    with torch.no_grad():
        projected = torch.stack(list(model.model.get_image_features(pixel_values=images).pooler_output))
        seen_ND = clip.visual(F.avg_pool2d(images, 2))
        size = seen_ND.shape[1]
        assert float(F.cosine_similarity(projected[:, 0, :size], seen_ND).mean()) > 0.9
    names = {"dog": torch.eye(size)[0], "cat": torch.eye(size)[1], "cat fish": torch.eye(size)[2]}
    tokenizer: Any = trainer.processor.tokenizer
    dog, cat = (tokenizer(f" {name}").input_ids[0] for name in ("dog", "cat"))
    started = start_words(model, tokenizer, names)
    assert set(started) == {dog, cat}
    middle = torch.stack(list(names.values())).mean(0)
    expected = torch.stack([names["cat"] - middle, names["cat fish"] - middle]).mean(0)
    assert torch.allclose(model.lm_head.weight[cat, :size], WORD_GAIN * expected)


@pytest.mark.slow
def test_resuming_changes_nothing(tiny: CaptionerPretraining, tmp_path: Path) -> None:
    undisturbed, first = CaptionerPretrainer(tiny), CaptionerPretrainer(tiny)
    for _ in range(4):
        undisturbed.train_step()
    for _ in range(2):
        first.train_step()
    torch.save(first.state(), tmp_path / "state.pt")
    second = CaptionerPretrainer(tiny)
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        second.train_step()
    assert second.step == 4
    for name, weight in undisturbed.average.items():
        assert torch.equal(weight, second.average[name]), name


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Train warns of its own use of Ray Data
@pytest.mark.usefixtures("ray_cluster")
def test_a_tiny_run_on_ray_train(tiny: CaptionerPretraining) -> None:
    """That a run is continued is shown with the CLIP, whose trainer is the same."""
    result = captioner_pretraining.pretrain(tiny)
    assert result.metrics is not None
    assert result.metrics["step"] == 4
    written = LlavaForConditionalGeneration.from_pretrained(captioner_pretraining.export_path(tiny))
    assert bool(written.lm_head.weight.isfinite().all())
