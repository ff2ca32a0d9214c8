"""The mean of many wordings against a single one on real CLIP features, and what the guard makes of it.

``RAYDAPT_DATA=… python -m tests.bench.bench_wordings`` takes twenty wordings of WHU-RS19 in turn as the prompt of
zero-shot, under four encoders, and prints how the mean of all wordings (``ensemble``) changes top-1, alone and guarded.

Legend: N images, T wordings, C classes, D width.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from raydapt.methods.guard import judge
from tests.bench.bench_features import markdown

TRIED, SCALE = 20, 100.0


def read(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """L2-normalised features [N, D], embeddings of all wordings [T, C, D], and the class of every image."""
    images = pq.read_table(path).to_pydict()
    texts = pq.read_table(path.with_name(f"{path.stem}.classes.parquet")).to_pydict()
    names, wordings = list(dict.fromkeys(texts["name"])), list(dict.fromkeys(texts["template"]))
    text_ED = F.normalize(torch.from_numpy(np.array(texts["feature"], np.float32)), dim=1)
    text_TCD = torch.zeros(len(wordings), len(names), text_ED.shape[1])
    for name, wording, text_D in zip(texts["name"], texts["template"], text_ED, strict=True):
        text_TCD[wordings.index(wording), names.index(name)] = text_D
    feature_ND = F.normalize(torch.from_numpy(np.array(images["feature"], np.float32)), dim=1)
    return feature_ND, text_TCD, torch.tensor([names.index(label) for label in images["label"]])


def line(path: Path) -> dict[str, object]:
    """One encoder."""
    feature_ND, text_TCD, label_N = read(path)
    mean_CD = F.normalize(text_TCD.mean(dim=0), dim=1)
    mean_NC = (SCALE * feature_ND @ mean_CD.T).softmax(dim=1)

    def top1(probability_NC: Tensor) -> float:
        return 100 * float((probability_NC.argmax(dim=1) == label_N).double().mean())

    found = []
    for wording in np.linspace(0, len(text_TCD) - 1, TRIED).astype(int):
        single_NC = (SCALE * feature_ND @ text_TCD[wording].T).softmax(dim=1)
        answer_NC = judge(single_NC, mean_NC, feature_ND).probabilities(single_NC, mean_NC)
        found.append((top1(single_NC), top1(mean_NC) - top1(single_NC), top1(answer_NC) - top1(single_NC)))
    zero, alone, guarded = np.array(found).T
    return {
        "encoder": path.stem,
        "single wordings": f"{zero.mean():.1f}",
        "mean of all: change, worst": f"{alone.mean():+.2f}, {alone.min():+.2f}",
        "guarded: change, worst": f"{guarded.mean():+.2f}, {guarded.min():+.2f}",
    }


def main() -> None:
    """Prints the table."""
    folder = Path(os.environ["RAYDAPT_DATA"]) / "clip_features"
    paths = [path for path in sorted(folder.glob("*whurs19.parquet")) if "classes" not in path.name]
    sys.stdout.write(markdown([line(path) for path in paths]) + "\n")


if __name__ == "__main__":
    main()
