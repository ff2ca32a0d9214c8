"""Captioning without an engine: what is asked, what is kept of the answers, what is refused before anything starts."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydapt.artefacts.captions import GROUP_CAPTIONS, IMAGE_CAPTIONS, load_captions, pieces_of
from raydapt.data.sources import resolve_source
from raydapt.errors import UserError
from raydapt.methods.configuration import load_config
from raydapt.models.language import model_address, model_identity
from raydapt.settings.groups import DataSettings
from raydapt.stages.caption import CaptionAsker, as_captions, asker_of
from raydapt.stages.caption_rows import IMAGES, compact, read_images
from raydapt.stages.captioning import caption_jobs
from raydapt.stages.commit import PART, PART_ROWS
from raydapt.stages.endpoint import data_url
from raydapt.stages.questions import ANSWER, ASKED, ERROR, SKIPPED, SkipRow, as_result, engine_reason
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe
from raydapt.verbs.caption import caption
from tests.stages.images import BAD, png, write_images

ASKER = CaptionAsker(image_px=12, canvas_px=None, gap_px=None, max_pixels=1000, max_bytes=10_000)
SCHEMA = pa.schema([("row", pa.int64()), (ANSWER, pa.string()), (ERROR, pa.string())])


def row_of(*images: bytes, error: str | None = None) -> dict:
    return {IMAGES: list(images), ASKED: "what?", ERROR: error, "id": "00000000000000ff"}


def model_folder(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_one_image_is_asked_about_as_it_is_and_four_on_a_canvas():
    one = ASKER(row_of(png(5, 10)))
    assert (one.text, one.image.size) == ("what?", (10, 10))
    assert ASKER(row_of(png(5, 24))).image.size == (12, 12)
    group = ASKER(row_of(png(1, 4), png(2, 4), png(3, 4), png(4, 4)))
    assert group.image.size == (12, 12)  # cells of 8 px and no gap worth a pixel, made smaller


def test_a_bad_image_is_a_reason_and_its_bytes_do_not_travel_on():
    for image, reason in zip(BAD, ("empty", "not_an_image", "not_an_image|corrupt"), strict=True):
        row = row_of(image)
        with pytest.raises(SkipRow, match=reason):
            ASKER(row)
        assert IMAGES not in row
    with pytest.raises(SkipRow, match="too_many_pixels"):
        ASKER(row_of(png(0, 40)))
    with pytest.raises(SkipRow, match="unreadable"):
        ASKER(row_of(png(0), error="unreadable"))


def test_results_have_exactly_the_columns_of_the_schema():
    table = pa.table(
        {
            "row": [3, 1, 2, 0],
            "answer": ["fine", "", "", None],
            "rest": [0, 0, 0, 0],
            "error": [None, None, "corrupt", SKIPPED],
            "__inference_error__": ["", "ValueError: 512 is longer than 256\nmore", "corrupt", SKIPPED],
        }
    )
    result = as_result(table, SCHEMA)
    assert result.schema == SCHEMA
    assert result["error"].to_pylist() == [None, "engine: ValueError: N is longer than N", "corrupt", None]
    assert as_result(pa.table({"row": pa.array([], pa.int64())}), SCHEMA).schema == SCHEMA
    assert len(engine_reason("x" * 10_000)) < 200


def test_an_engine_that_says_nothing_but_thoughts_gave_no_caption():
    texts = ["<think>hm</think> A cat.", "<think>hm", " ", "", None, "A dog."]
    result = as_result(pa.table({"row": range(6), "answer": texts}), SCHEMA)
    assert result["answer"].to_pylist() == ["A cat.", None, None, None, None, "A dog."]
    assert result["error"].to_pylist() == [None, "empty_answer", "empty_answer", "empty_answer", None, None]


def test_parts_are_read_in_blocks_and_what_nobody_wants_is_skipped(tmp_path: Path):
    source = resolve_source(str(write_images(tmp_path / "a.parquet", 70, bad={1: BAD[0]})), rows_per_part=70)
    asked = [None if row == 2 else "what?" for row in range(70)]
    pieces = [pieces_of(source)]
    work = pa.table({"work": [pickle.dumps((source.parts, pieces, [asked]))]})
    blocks = list(read_images(work, data=DataSettings(), prompt="other"))
    table = pa.concat_tables(blocks)
    assert len(blocks) == 2
    assert table["row"].to_pylist() == list(range(70))
    assert table[ERROR].to_pylist()[:4] == [None, "empty", SKIPPED, None]
    first, second = (piece.number for piece in pieces[0])
    assert table[PART].to_pylist() == [first] * 64 + [second] * 6
    assert table[PART_ROWS].to_pylist() == [64] * 64 + [6] * 6
    rest = pa.table({"work": [pickle.dumps((source.parts, [pieces[0][1:]], [None]))]})
    again = pa.concat_tables(list(read_images(rest, data=DataSettings(), prompt="b")))
    assert again["row"].to_pylist() == list(range(64, 70))
    assert set(again[ASKED].to_pylist()) == {"b"}


def test_pieces_cover_every_row_once_in_the_order_of_the_source(tmp_path: Path):
    write_images(tmp_path / "a.parquet", 130)
    write_images(tmp_path / "b.parquet", 3)
    source = resolve_source(str(tmp_path), rows_per_part=100)
    pieces = pieces_of(source)
    first_row_of = {part.index: part.first_row for part in source.parts}
    rows = [first_row_of[piece.part] + row for piece in pieces for row in range(piece.start, piece.stop or 0)]
    assert rows == list(range(133))
    numbers = [piece.number for piece in pieces]
    assert numbers == sorted(set(numbers))
    assert not set(numbers) & {part.index for part in source.parts}
    unknown = replace(source, parts=(replace(source.parts[0], rows=None),))
    assert [(piece.start, piece.stop) for piece in pieces_of(unknown)] == [(0, None)]


def test_a_large_image_waits_no_larger_than_its_cell():
    small, large, data = png(1, 16), png(2, 64), DataSettings()
    assert compact(small, 326, data) is small
    assert len(compact(large, 16, data)) < len(large)
    assert compact(BAD[1] * 100, 2, data) is None


def test_captions_are_read_by_their_first_line(tmp_path: Path):
    texts = ["a cat.\nIt sits.", None, "", " <script>alert(1)</script> ", "Ein Hund, 犬", "x" * 10_000, "\n\n second"]
    recipe = Recipe(kind=IMAGE_CAPTIONS, settings={}, inputs=(), weights="")
    artefact = Store(str(tmp_path)).artefact_of(recipe)
    artefact.commit_part(0, as_captions(pa.table({ASKED: ["?"] * 7, ANSWER: pa.array(texts, pa.string())}), "m"))
    artefact.finish(recipe, [0], {}, {})
    expected = ["a cat.", None, None, "<script>alert(1)</script>", "Ein Hund, 犬", "x" * 10_000, "second"]
    assert load_captions(artefact) == expected
    assert artefact.read().column_names == ["prompt", "caption", "model"]


def test_a_recipe_knows_what_decides_on_captions_and_nothing_else(tmp_path: Path):
    folder = model_folder(tmp_path / "m")
    source = resolve_source("digits", rows_per_part=512)

    def recipe(*overrides: str) -> Recipe:
        return caption_jobs(load_config(None, [f"caption.model={folder}", *overrides]), source)[IMAGE_CAPTIONS].recipe

    same = recipe()
    for override in (
        "caption.replicas=2",
        "caption.batch_size=8",
        "caption.max_num_seqs=4",
        "seed=5",
        "caption.seed=3",
    ):
        assert recipe(override) == same, override
    for override in (
        "caption.max_tokens=9",
        "caption.image_prompt=why?",
        "caption.greedy=false",
        "caption.image_px=50",
    ):
        assert recipe(override) != same, override
    (Path(folder) / "config.json").write_text("{ }")
    assert recipe() != same
    assert GROUP_CAPTIONS not in caption_jobs(load_config(None, [f"caption.model={folder}"]), source)


def test_the_canvas_of_the_settings_reaches_the_questions(tmp_path: Path):
    overrides = [f"caption.model={model_folder(tmp_path / 'm')}", "caption.canvas_px=100", "caption.gap_px=4"]
    job = caption_jobs(load_config(None, overrides), resolve_source("digits", rows_per_part=512))[IMAGE_CAPTIONS]
    assert (asker_of(job).canvas_px, asker_of(job).gap_px) == (100, 4)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("caption.model=./nowhere", ["caption.model='./nowhere'", "no folder"]),
        ("caption.model=llava", ["caption.model='llava'", "ORGANISATION/NAME"]),
        ("caption.image_prompt=a {} and a {}", ["caption.image_prompt", "at most one {}"]),
        ("caption.image_prompt=' '", ["caption.image_prompt"]),
        ("caption.engine=ollama", ["caption.engine='ollama'", "'openai'"]),
        ("caption.max_tokens=0", ["caption.max_tokens=0"]),
        ("caption.trust_remote_code=true", ["trust_remote_code"]),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path: Path, override: str, words: list[str]):
    with pytest.raises(UserError) as caught:
        caption(load_config(None, [override, f"store={tmp_path}"]))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_folder_that_holds_no_model_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"without config\.json"):
        model_address(str(tmp_path), setting="caption.model")
    folder = model_folder(tmp_path / "m")
    before = model_identity(model_address(folder, setting="caption.model"))
    (tmp_path / "m" / "weights.safetensors").write_bytes(np.arange(4).tobytes())
    assert model_identity(folder) != before
    assert model_identity("org/name") == "org/name"


def test_a_server_gets_the_image_itself():
    url = data_url(ASKER(row_of(png(5, 10))).image)
    assert url.startswith("data:image/png;base64,iVBOR")
