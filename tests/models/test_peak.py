"""The work of a model, and the clock of its calls."""

import pytest
import torch
from torch import nn

from raydapt.models.frozen import shared_clip
from raydapt.models.peak import Clock, Work, counted, peak_flop_per_s
from raydapt.stages.inference import Inference

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "tf32", 494),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA L4", "fp32", 30.3),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "bf16", 0),
        ("NVIDIA GeForce GTX 980", "fp32", 0),
    ],
)
def test_data_sheets_are_found_by_the_words_of_a_name(name, precision, tera):
    assert peak_flop_per_s(name, precision) == tera * 1e12


def test_operations_are_those_of_the_matrices():
    layer, work = nn.Linear(7, 5), Work()
    with counted(work):
        layer(torch.zeros(3, 7))
        layer(torch.zeros(2, 7))
    assert work.flop == 2 * (3 + 2) * 7 * 5


def test_an_encoder_counts_every_image_once_and_all_of_its_layers():
    """Against the matrices of the tower, by hand: patches, and in each block queries, keys, values, output and MLP."""
    clip = shared_clip("mini")
    inference = Inference.of(clip, CPU, "fp32")
    tower, side = clip.model.visual, clip.image_spec.size_px
    patch_px = tower.conv1.kernel_size[0]
    places, width = (side // patch_px) ** 2, tower.conv1.out_channels
    expected = 2 * places * width * 3 * patch_px**2 + 2 * width * tower.output_dim
    for block in tower.transformer.resblocks:
        expected += 2 * (places + 1) * (4 * width**2 + 2 * width * block.mlp.c_fc.out_features)
    for images in (3, 4):
        inference.encode(torch.zeros(images, 3, side, side, dtype=torch.uint8))
    assert inference.work.flop == pytest.approx(7 * expected, rel=0.01)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_clock_changes_no_result():
    """The first call of a layer is the same to the bit as the second; counting decomposes it into others."""
    torch.manual_seed(0)
    layer, image_B3SS = nn.TransformerEncoderLayer(32, 4, batch_first=True).eval(), torch.randn(5, 7, 32)
    with torch.inference_mode():
        plain = layer(image_B3SS)
        clock = Clock(layer, CPU, "fp32")
        assert torch.equal(layer(image_B3SS), plain)
    assert clock.read()[1].flop > 0


def test_a_clock_counts_calls_and_their_operations():
    layer = nn.Linear(40, 30)
    clock = Clock(layer, CPU, "fp32")
    assert clock.read() == (0.0, Work())
    for _ in range(3):
        layer(torch.zeros(2, 40))
    seconds, work = clock.read()
    assert seconds > 0
    assert work == Work(flop=3 * 2 * 2 * 40 * 30)
    assert clock.read() == (seconds, work)
