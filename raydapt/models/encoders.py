"""Encoders worth taking, by machine and by what is seen: their published zero-shot figures.

The figures are those of open_clip's own table, ``docs/openclip_results.csv`` (github.com/mlfoundations/open_clip,
commit f862f86), in percent. Since the choice of an encoder is worth more than that of a method, `raydapt doctor` shows
them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model of open_clip.

    Attributes:
        clip: As ``model.clip`` takes it.
        gflops: Billions of operations an image, text included, as open_clip counts them.
        millions: Of parameters.
        imagenet, textures, eurosat, resisc45, pets: Zero-shot accuracy in percent.
        machine: What it is for.
    """

    clip: str
    gflops: float
    millions: float
    imagenet: float
    textures: float
    eurosat: float
    resisc45: float
    pets: float
    machine: str


ENCODERS = (
    Encoder(clip="ViT-B-32/openai", gflops=14.8, millions=151.3, imagenet=63.3, textures=44.4, eurosat=50.4,
            resisc45=53.6, pets=87.0, machine="comparisons with papers"),
    Encoder(clip="ViT-B-32-256/datacomp_s34b_b86k", gflops=17.5, millions=151.3, imagenet=72.8, textures=60.6,
            eurosat=64.7, resisc45=65.1, pets=91.2, machine="a CPU"),
    Encoder(clip="ViT-B-16/datacomp_xl_s13b_b90k", gflops=41.1, millions=149.6, imagenet=73.5, textures=57.9,
            eurosat=58.8, resisc45=65.4, pets=92.5, machine="a small GPU"),
    Encoder(clip="ViT-B-16-SigLIP-256/webli", gflops=57.8, millions=203.2, imagenet=76.5, textures=65.7, eurosat=46.1,
            resisc45=64.4, pets=94.2, machine="a small GPU, objects and products"),
    Encoder(clip="ViT-L-14/datacomp_xl_s13b_b90k", gflops=175.3, millions=427.6, imagenet=79.2, textures=66.5,
            eurosat=71.2, resisc45=69.4, pets=95.1, machine="a GPU"),
    Encoder(clip="ViT-SO400M-14-SigLIP-384/webli", gflops=723.5, millions=878.0, imagenet=83.1, textures=73.0,
            eurosat=63.5, resisc45=72.1, pets=96.8, machine="a large GPU"),
    Encoder(clip="ViT-H-14-378-quickgelu/dfn5b", gflops=1054.1, millions=986.7, imagenet=84.4, textures=71.1,
            eurosat=61.3, resisc45=75.9, pets=97.0, machine="a large GPU"),
)  # fmt: skip
ON_CPU, ON_GPU = ENCODERS[1], ENCODERS[4]
