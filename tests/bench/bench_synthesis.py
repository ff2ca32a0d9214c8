"""Synthetic images per second: two actors that make batches against a plain diffusers loop of one image at a time.

``python -m tests.bench.bench_synthesis`` prints a Markdown table. Both ways have the same settings and run one after
the other, each in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydapt.settings.groups import RaySettings, SynthesisSettings
from tests.bench.bench_features import markdown

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATE = "a photo of the digit {}."
PLAIN_IMAGES = 30
SAMPLES_PER_CLASS = 100


def plain_loop(pipeline_name: str, steps: int) -> dict[str, Any]:
    """What one writes first: load the pipeline, call it once per image."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    from raydapt.models.diffusion import image_seed
    from raydapt.models.pipelines import MINI

    torch.set_num_threads(os.cpu_count() or 1)  # the stage's two actors have the whole machine as well
    folder = str(MINI) if pipeline_name == "mini" else pipeline_name
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    settings = SynthesisSettings()
    pipeline(TEMPLATE.format(CLASSES[0]), num_inference_steps=2)
    start = time.perf_counter()
    for at in range(PLAIN_IMAGES):
        name, index = CLASSES[at % len(CLASSES)], at // len(CLASSES)
        generator = torch.Generator().manual_seed(image_seed(0, name, index))
        pipeline(
            TEMPLATE.format(name),
            num_inference_steps=steps,
            guidance_scale=settings.guidance,
            generator=generator,
        )
    seconds = time.perf_counter() - start
    return {"rows": PLAIN_IMAGES, "seconds": seconds, "rows_per_s": PLAIN_IMAGES / seconds}


def through_the_stage(pipeline_name: str, steps: int, actors: int, samples: int) -> dict[str, Any]:
    """The stage, into an empty store."""
    from raydapt.artefacts.synthesis import SynthesisJob
    from raydapt.models.diffusion import Sampling
    from raydapt.models.pipelines import native_size_px, pipeline_identity
    from raydapt.stages.synthesis import synthesize_stage
    from raydapt.store.artefact import Store

    settings = SynthesisSettings(samples_per_class=samples, actors=actors)
    sampling = Sampling(
        scheduler="dpm++",
        steps=steps,
        guidance=settings.guidance,
        negative_prompt="",
        size_px=native_size_px(pipeline_name),
        seed=0,
        batch_size=settings.batch_size,
    )
    job = SynthesisJob(
        class_names=CLASSES,
        template=TEMPLATE,
        pipeline=pipeline_name,
        identity=pipeline_identity(pipeline_name),
        sampling=sampling,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = synthesize_stage(
            job,
            settings=settings,
            max_error_share=0.0,
            ray_settings=RaySettings(address="local", progress=False),
            store=Store(folder),
        )
        return dict(result.artefact.manifest.stats)


def in_a_process(*words: object) -> dict[str, Any]:
    """Runs one measurement in a fresh interpreter and returns what it printed last."""
    command = [sys.executable, "-m", "tests.bench.bench_synthesis", "--one", *map(str, words)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def speed(pipeline_name: str, steps: int, samples: int) -> list[dict[str, Any]]:
    """Images/s of both ways, the stage's without and with its start, and the share of time inside the UNet."""
    plain = in_a_process("plain", pipeline_name, steps, 1, 0)
    staged = in_a_process("stage", pipeline_name, steps, 2, samples)
    busy_s = staged["seconds"] - staged["startup_seconds"]
    steady = (staged["rows"] - SynthesisSettings().batch_size) / busy_s
    share = staged["model_seconds"] / (staged["actors"] * busy_s)
    rows = []
    for name, found, rate, unet in (
        ("plain loop, batch 1", plain, plain["rows_per_s"], ""),
        ("stage, two actors", staged, steady, round(min(share, 1.0), 2)),
    ):
        row = {"way": name, "pipeline": pipeline_name, "steps": steps, "images": found["rows"]}
        row["images/s once started"] = round(rate, 2)
        row["images/s in all"] = round(found["rows_per_s"], 2)
        row["share of time in the UNet"] = unet
        row["times the plain loop"] = round(rate / plain["rows_per_s"], 2)
        rows.append(row)
    return rows


def ratios() -> dict[str, float]:
    """How many times as fast as a plain loop two actors are, once started."""
    _, staged = speed("mini", SynthesisSettings().steps, SAMPLES_PER_CLASS // 2)
    return {"synthesis, mini, two actors once started": staged["times the plain loop"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or with ``--one`` a single measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=5, metavar=("WAY", "PIPELINE", "STEPS", "ACTORS", "SAMPLES"))
    parser.add_argument("--pipeline", default="mini")
    parser.add_argument("--steps", type=int, default=SynthesisSettings().steps)
    parser.add_argument("--samples", type=int, default=SAMPLES_PER_CLASS)
    given = parser.parse_args(arguments)
    if given.one:
        way, pipeline, steps, actors, samples = given.one
        plain = way == "plain"
        found = (
            plain_loop(pipeline, int(steps))
            if plain
            else through_the_stage(pipeline, int(steps), int(actors), int(samples))
        )
        print(json.dumps(found))
        return
    print("## Synthesis, images per second\n\n" + markdown(speed(given.pipeline, given.steps, given.samples)))


if __name__ == "__main__":
    main()
