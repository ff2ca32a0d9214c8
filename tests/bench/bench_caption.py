"""Captions per second: the stage with vLLM against a plain transformers loop of one image at a time, on one model.

``python -m tests.bench.bench_caption --model FOLDER`` prints a Markdown table; both ways run one after the other, each
in a process of its own, on the built-in digits. The start of the engine is reported apart.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.bench_features import markdown

PLAIN_IMAGES, IMAGES = 60, 1500
PROMPT = "Describe the digit in the photo concisely, less than 20 words."


def plain_loop(model: str) -> dict[str, Any]:
    """What one writes first: generate for one image after the other."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from raydapt.data.digits import load
    from raydapt.models.language import chat_texts, model_address

    torch.set_num_threads(os.cpu_count() or 1)
    address = model_address(model, setting="caption.model")
    processor = AutoProcessor.from_pretrained(address)
    captioner = AutoModelForImageTextToText.from_pretrained(address, dtype=torch.float32).eval()
    text = chat_texts(address, [PROMPT], image=True, setting="caption.model")[PROMPT]
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in load().images[: PLAIN_IMAGES + 2]]
    tokens, start = 0, 0.0
    for at, image in enumerate(images):
        if at == 2:  # the first ones warm up
            tokens, start = 0, time.perf_counter()
        inputs = processor(images=image, text=text, return_tensors="pt")
        with torch.inference_mode():
            given = captioner.generate(**inputs, max_new_tokens=77, do_sample=False)
        tokens += given.shape[1] - inputs["input_ids"].shape[1]
    seconds = time.perf_counter() - start
    return {"rows": PLAIN_IMAGES, "seconds": seconds, "rows_per_s": PLAIN_IMAGES / seconds, "tokens": tokens}


def through_the_stage(model: str, images: int) -> dict[str, Any]:
    """The stage, into an empty store."""
    from raydapt.artefacts.captions import IMAGE_CAPTIONS
    from raydapt.data.sources import resolve_source
    from raydapt.methods.configuration import load_config
    from raydapt.settings.groups import RaySettings
    from raydapt.stages.caption import caption_stage
    from raydapt.stages.captioning import caption_jobs
    from raydapt.store.artefact import Store

    overrides = [f"caption.model={model}", f"caption.image_prompt={PROMPT}", f"data.limit={images}"]
    config = load_config(None, overrides)
    source = resolve_source("digits", rows_per_part=128, limit=images)
    with tempfile.TemporaryDirectory() as folder:
        result = caption_stage(
            caption_jobs(config, source)[IMAGE_CAPTIONS],
            known=None,
            ray_settings=RaySettings(address="local", progress=False),
            store=Store(folder),
        )
        return dict(result.artefact.manifest.stats)


def in_a_process(*words: object) -> dict[str, Any]:
    """Runs one measurement in a fresh interpreter and returns what it printed last."""
    command = [sys.executable, "-m", "tests.bench.bench_caption", "--one", *map(str, words)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def speed(model: str, images: int) -> list[dict[str, Any]]:
    """Captions/s of both ways; the stage's once its first part is there, and in all."""
    plain, staged = in_a_process("plain", model, 0), in_a_process("stage", model, images)
    steady = (staged["rows"] - 128) / (staged["seconds"] - staged["startup_seconds"])
    rows = []
    for name, found, rate in (
        ("transformers, batch 1", plain, plain["rows_per_s"]),
        ("stage, vLLM", staged, steady),
    ):
        row = {"way": name, "model": model, "images": found["rows"], "captions/s once started": round(rate, 2)}
        row["start-up s"] = round(found.get("startup_seconds", 0.0), 1)
        row["captions/s in all"] = round(found["rows_per_s"], 2)
        row["times the plain loop"] = round(rate / plain["rows_per_s"], 1)
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or with ``--one`` a single measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "MODEL", "IMAGES"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--images", type=int, default=IMAGES)
    given = parser.parse_args(arguments)
    if given.one:
        way, model, images = given.one
        found = plain_loop(model) if way == "plain" else through_the_stage(model, int(images))
        print(json.dumps(found))
        return
    print("## Captions per second\n\n" + markdown(speed(given.model, given.images)))


if __name__ == "__main__":
    main()
