"""Text-prompt learning: images/s against the naive way, and the memory of a step with very many classes.

The naive way is what a first implementation does at every step: the frozen image tower over the batch, and every class
text at its full length. ``python -m tests.bench.bench_prompts`` prints a Markdown table of each.

Legend: B batch, C classes, L tokens of the full context, D width, P prompt tokens, S side in px.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.data.classes import resolve_classes
from raydapt.data.decode import decode_image
from raydapt.data.sources import read_part, resolve_source
from raydapt.models.clip import Clip, load_clip
from raydapt.models.prompts import PromptedClip
from raydapt.settings.groups import DataSettings, ModelSettings
from tests.bench.bench_features import markdown

PROMPT_TOKENS = 16
BATCH = 64
LEARNING_RATE = 0.02
CLASSES = [f"class number {i}" for i in range(5000)]


class NaivePrompt(torch.nn.Module):
    """A text prompt, plainly: full-length texts, no cropping, no sharing, no cache."""

    def __init__(self, clip: Clip, names: list[str], context_LD: Tensor) -> None:
        super().__init__()
        self.clip = clip
        self.context_PD = torch.nn.Parameter(context_LD.clone())
        plain_CL = clip.tokenizer(names)
        gap_CP = plain_CL.new_zeros(len(names), PROMPT_TOKENS)  # where the prompt's embeddings will stand
        self.token_CL = torch.cat([plain_CL[:, :1], gap_CP, plain_CL[:, 1:]], 1)[:, : plain_CL.shape[1]]

    def forward(self, pixel_B3SS: Tensor) -> Tensor:
        """Logits [B, C]."""
        model = self.clip.model
        embedded_CLD = model.token_embedding(self.token_CL).clone()
        embedded_CLD[:, 1 : 1 + PROMPT_TOKENS] = self.context_PD
        hidden_CLD = model.transformer(embedded_CLD + model.positional_embedding, attn_mask=model.attn_mask)
        end_C = self.token_CL.argmax(-1)
        text_CD = model.ln_final(hidden_CLD)[torch.arange(len(end_C)), end_C] @ model.text_projection
        with torch.no_grad():
            feature_BD = self.clip.encode_image(pixel_B3SS)
        return self.clip.logit_scale * feature_BD @ F.normalize(text_CD, dim=-1).T


def digits(clip: Clip, limit: int | None) -> dict[str, Any]:
    """The built-in digits (the first ones) decoded for a model, with classes and splits."""
    data = DataSettings(source="digits")
    source = resolve_source("digits", rows_per_part=5000)
    classes = resolve_classes(data, source)
    table = read_part(source.parts[0], data)
    limits = {"max_pixels": data.max_image_pixels, "max_bytes": data.max_image_bytes}
    pixels = [torch.from_numpy(decode_image(i.as_py(), clip.image_spec, **limits)) for i in table["image"][:limit]]
    return {
        "names": list(classes.names),
        "templates": list(classes.templates),
        "pixel": torch.stack(pixels),
        "label": torch.from_numpy(classes.indices_of(table["label"].to_pylist()[:limit])),
        "train": torch.tensor([split == "train" for split in table["split"].to_pylist()[:limit]]),
    }


def learn(step: Any, parameters: list[torch.nn.Parameter], n_train: int, steps: int) -> float:
    """Runs optimiser steps over the same batches for everybody; returns images/s."""
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    for _ in range(steps):
        index_B = torch.randint(n_train, (BATCH,), generator=generator)
        optimizer.zero_grad()
        step(index_B).backward()
        optimizer.step()
    return steps * BATCH / (time.perf_counter() - started)


def on_digits(clip_name: str, steps: int, naive_steps: int) -> list[dict[str, Any]]:
    """Both ways on the labelled digits: supervised here, so that equal accuracy means equal learning."""
    clip = load_clip(clip_name)
    data = digits(clip, limit=None if steps == naive_steps else 2 * BATCH)
    train, test = data["train"], ~data["train"]
    settings = ModelSettings(clip=clip_name, text_prompt_tokens=PROMPT_TOKENS)
    ours = PromptedClip(clip, data["names"], data["templates"], settings, seed=0)
    context = next(p for p in ours.parameters() if p.requires_grad)
    naive = NaivePrompt(clip, data["names"], context.detach())
    with torch.no_grad():
        feature_ND = torch.cat([clip.encode_image(chunk) for chunk in data["pixel"].split(256)])
    pixel_N, train_ND, label_N = data["pixel"][train], feature_ND[train], data["label"][train]
    ways = (
        ("naive", naive, lambda i: F.cross_entropy(naive(pixel_N[i]), label_N[i]), naive_steps),
        ("cached features", ours, lambda i: F.cross_entropy(ours(train_ND[i]), label_N[i]), steps),
    )
    rows: list[dict[str, Any]] = []
    for name, module, step, n_steps in ways:
        rate = learn(step, [p for p in module.parameters() if p.requires_grad], int(train.sum()), n_steps)
        row: dict[str, Any] = {"way": name, "model": clip_name, "steps": n_steps, "images/s": round(rate, 1)}
        row["times naive"] = round(rate / rows[0]["images/s"], 1) if rows else 1.0
        row["test accuracy %"] = ""
        if steps == naive_steps:
            with torch.inference_mode():
                image = data["pixel"][test] if name == "naive" else feature_ND[test]
                guess = module(image).argmax(-1)
            row["test accuracy %"] = round(100 * float((guess == data["label"][test]).float().mean()), 2)
        rows.append(row)
    return rows


def many_classes(n_classes: int, classes_per_chunk: int) -> dict[str, Any]:
    """One step over very many classes in this process; peak memory beyond what was there before, in MiB."""
    clip = load_clip("mini")
    names = CLASSES[:n_classes]
    settings = ModelSettings(classes_per_chunk=classes_per_chunk)
    prompted = PromptedClip(clip, names, ["a photo of a {}."], settings, seed=0)
    feature_BD = F.normalize(torch.randn(BATCH, clip.embed_dim), dim=-1)
    label_B = torch.randint(n_classes, (BATCH,))
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far, which imports had reached
    started = time.perf_counter()
    F.cross_entropy(prompted(feature_BD), label_B).backward()
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    return {
        "classes": n_classes,
        "classes per chunk": classes_per_chunk,
        "peak MiB beyond the model": round((peak - before) / 2**20),
        "seconds a step": round(seconds, 2),
    }


def many_classes_in_processes() -> list[dict[str, Any]]:
    """`many_classes` in fresh interpreters, since peaks are per process."""
    rows = []
    for n_classes, chunk in ((1000, 256), (5000, 256), (5000, 5000)):
        command = [sys.executable, "-m", "tests.bench.bench_prompts", "--classes", str(n_classes), str(chunk)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return rows


def ratios() -> dict[str, float]:
    """How many times as fast as the naive way the miniature CLIP's prompt is learned."""
    _, ours = on_digits("mini", steps=200, naive_steps=200)
    return {"text prompt, mini": ours["times naive"]}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", nargs=2, type=int, metavar=("CLASSES", "CHUNK"))
    given = parser.parse_args()
    if given.classes:
        print(json.dumps(many_classes(*given.classes)))
        return
    torch.set_num_threads(2)
    rows = on_digits("mini", steps=200, naive_steps=200) + on_digits("ViT-B-32/random", steps=30, naive_steps=3)
    print("## Text-prompt learning\n\n" + markdown(rows))
    print("\n## A step with many classes\n\n" + markdown(many_classes_in_processes()))


if __name__ == "__main__":
    main()
