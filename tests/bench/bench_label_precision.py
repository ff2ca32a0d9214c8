"""How many pseudo-labels of `fair` and `latteclip` another arithmetic changes.

``python -m tests.bench.bench_label_precision --sets pacs_cartoon digits`` goes once over the first 512 images of each
set in batches of 64, with the model as it starts, on the CPU. ``scores in bf16``: the same fp32 features, but compared
under autocast. ``tower in bf16``: the image tower under autocast, scores in fp32. ``both``: all of it under autocast.
Each is counted against all in fp32.
"""

import argparse
import tempfile

import torch
from torch import Tensor

from raydapt.artefacts.features import load_features
from raydapt.artefacts.pixels import PixelRows, load_pixels
from raydapt.methods.configuration import load_config
from raydapt.methods.contract import TrainingImages
from raydapt.methods.spec import BuildContext
from raydapt.methods.table import spec_of
from raydapt.models.frozen import load_frozen
from raydapt.models.views import light_view
from raydapt.run.making import artefacts_of, make_artefacts
from raydapt.run.plan import make_plan
from tests.bench.bench_features import markdown

IMAGES, BATCH, SEED = 512, 64, 7
SETTINGS = {
    "fair": (),
    "latteclip": ("latteclip.use_image_caption=false", "latteclip.use_batch_caption=false"),
}
"""Captions move prototypes, which have not moved yet."""
WAYS = ("all in fp32", "scores in bf16", "tower in bf16", "both")


def method_and_images(method, source, folder):
    """The method as it starts, and the uint8 pixels of all images of the source."""
    given = (f"data.source={source}", f"data.limit={IMAGES}", f"store={folder}/store", f"runs={folder}/runs")
    config = load_config(None, [f"method={method}", *given, *SETTINGS[method]])
    plan = make_plan(config)
    made = artefacts_of(make_artefacts(plan))
    table = load_features(made["features"])
    none, index_N = torch.empty(0, dtype=torch.int64), torch.arange(len(table.feature_ND))
    images = TrainingImages(
        feature_ND=table.feature_ND,
        n_classes=len(plan.classes.names),
        labelled_L=none,
        label_L=none,
        unlabelled_U=index_N,
        candidate_classes=torch.arange(len(plan.classes.names)),
        pixels=PixelRows(load_pixels(made["pixels"], plan.config.train.cache_gb), index_N),
    )
    clip = load_frozen(plan.config.data, plan.config.model)
    context = BuildContext(config=plan.config, clip=clip, classes=plan.classes, images=images)
    return spec_of(method).build(context), images.pixels.take(index_N)


def scores(method, name, image_B3SS, seed, *, tower: bool, compared: bool) -> Tensor:
    """What pseudo-labels are the best classes of, [B, C]; `tower` and `compared` say what is under autocast."""
    with torch.autocast("cpu", torch.bfloat16, enabled=tower):
        if name == "fair":
            whole_BD, crop_BKD = method._whole_and_crops(image_B3SS, seed)
            seen_BD, class_CD = (whole_BD, crop_BKD), method.anchors()
        else:
            torch.manual_seed(seed)
            view = light_view(image_B3SS, method.clip.image_spec.size_px)
            seen_BD, class_CD = method._image_features(view), method.class_embeddings()
    with torch.autocast("cpu", torch.bfloat16, enabled=compared):
        if name == "fair":
            seen_BD = method._composite(*(feature.float() for feature in seen_BD))
        return seen_BD.float() @ class_CD.float().T


@torch.no_grad()
def flips(name, source) -> dict[str, str]:
    """Percent of the images whose pseudo-label is another than in fp32, by what is in bf16."""
    with tempfile.TemporaryDirectory() as folder:
        method, pixel_N3SS = method_and_images(name, source, folder)
    method.train()
    label_N: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    for number, image_B3SS in enumerate(torch.split(pixel_N3SS, BATCH)):
        for way, tower, compared in zip(WAYS, (False, False, True, True), (False, True, False, True), strict=True):
            score_BC = scores(method, name, image_B3SS, SEED + number, tower=tower, compared=compared)
            label_N[way].append(score_BC.argmax(1))
    labels = {way: torch.cat(parts) for way, parts in label_N.items()}
    right = labels[WAYS[0]]
    line = {"method": name, "images": f"{source}, {len(right)}"}
    return line | {way: f"{100 * float((labels[way] != right).float().mean()):.1f}" for way in WAYS[1:]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["pacs_cartoon", "digits"])
    given = parser.parse_args()
    print(markdown([flips(name, source) for source in given.sets for name in SETTINGS]))


if __name__ == "__main__":
    main()
