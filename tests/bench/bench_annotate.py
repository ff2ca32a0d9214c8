"""Co-Reg's partial labels: time and largest memory (RSS) of the process that makes them, and of one that loads them.

``python -m tests.bench.bench_annotate --images 100000 --classes 1000`` draws features and the class embeddings of 27
wordings around one centre a class (width 64), and takes each step in a process of its own, which says what was there
before the step began and the most that there ever was.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from raydapt.artefacts.partial_labels import load_partial_labels, partial_labels_recipe
from raydapt.methods.coreg.partial_labels import annotate
from raydapt.stages.annotate import partial_labels_stage
from raydapt.store.artefact import Store
from raydapt.store.fingerprint import Recipe
from tests.bench.bench_features import markdown

IMAGES, CLASSES, TEMPLATES, WIDTH, ROWS_PER_PART = 100_000, 1_000, 27, 64, 512
STEPS = ("features", "annotate", "load")
_LOGIT_SCALE = 100.0


def class_embeddings(classes):
    """Unit vectors [C, D] and, a little apart, those of every wording [R, C, D]."""
    generator = torch.Generator().manual_seed(0)
    class_CD = F.normalize(torch.randn(classes, WIDTH, generator=generator), dim=1)
    noise_RCD = torch.randn(TEMPLATES, classes, WIDTH, generator=generator)
    return class_CD, F.normalize(class_CD + 0.06 * noise_RCD, dim=-1)


def recipes(images, classes):
    """Of the features and of their partial labels."""
    features = Recipe(kind="features", settings={"images": images}, inputs=("bench",), weights="bench")
    names = [f"class {number}" for number in range(classes)]
    templates = [f"{{}} {number}" for number in range(TEMPLATES)]
    labels = partial_labels_recipe(features, names, annotation="prompts", topk=5, prob_ratio=0.5, templates=templates)
    return features, labels


def make_features(store, images, classes):
    """Features near the classes, in parts."""
    class_CD, _ = class_embeddings(classes)
    recipe, _ = recipes(images, classes)
    artefact = store.artefact_of(recipe)
    for part, start in enumerate(range(0, images, ROWS_PER_PART)):
        row_M = np.arange(start, min(start + ROWS_PER_PART, images))
        noise_MD = torch.randn(len(row_M), WIDTH, generator=torch.Generator().manual_seed(part))
        feature_MD = F.normalize(class_CD[row_M % classes] + 0.15 * noise_MD, dim=1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(feature_MD.numpy().reshape(-1)), WIDTH)
        artefact.commit_part(part, pa.table({"id": [f"{row}" for row in row_M], "feature": column}))
    artefact.finish(recipe, range(part + 1), {}, {})


def take_step(step, folder, images, classes):
    """One step of this process: its seconds, megabytes before it and at most, and candidates an image."""
    torch.set_num_threads(1)
    store = Store(folder)
    features, labels = recipes(images, classes)
    before, started = _megabytes(), time.monotonic()
    if step == "features":
        make_features(store, images, classes)
    elif step == "annotate":
        _, class_RCD = class_embeddings(classes)

        def of_part(_, feature_MD):
            return annotate(feature_MD, class_RCD, _LOGIT_SCALE, mode="prompts", topk=5, ratio=0.5)

        partial_labels_stage(store.artefact_of(features), labels, lambda: of_part, store=store)
    else:
        load_partial_labels(store.artefact_of(labels))
    size = sum(shard.bytes for shard in store.artefact_of(features if step == "features" else labels).manifest.shards)
    seconds = time.monotonic() - started
    return {"seconds": seconds, "MB before": before, "MB at most": _megabytes(), "MB stored": size / 1e6}


def _megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder")
    given = parser.parse_args()
    if given.step:
        print(json.dumps(take_step(given.step, given.folder, given.images, given.classes)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            command = [sys.executable, "-m", "tests.bench.bench_annotate", "--step", step, "--folder", folder]
            command += ["--images", str(given.images), "--classes", str(given.classes)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            lines.append({"step": step} | {name: f"{value:,.0f}" for name, value in told.items()})
    print(f"{given.images:,} images, {given.classes:,} classes, {TEMPLATES} wordings")
    print(markdown(lines))


if __name__ == "__main__":
    main()
