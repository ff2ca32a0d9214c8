"""A frozen encoder on a device: batches, arithmetic, layout. What a GPU does by itself runs on none here."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor import config as inductor
from torch.nn import functional as F

from raydapt.data.decode import ImageSpec
from raydapt.errors import UserError
from raydapt.models.clip import Clip, load_clip
from raydapt.models.compiling import in_batches_of
from raydapt.models.self_supervised import WIDTH, SelfEncoder, SmallNet
from raydapt.settings.groups import Precision
from raydapt.stages.inference import Inference, is_convolutional

CPU = torch.device("cpu")
COMPILING = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's, of its own modules
MOST_APART: dict[Precision, float] = {"bf16": 0.02, "fp16": 0.003}
"""Length of the difference of two unit features, as docs/encoders.md states it."""


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("mini")


def pixels(n: int) -> torch.Tensor:
    """Smooth noise, more like pictures than noise of single pixels is."""
    coarse_N344 = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fine_N3SS = F.interpolate(coarse_N344, size=(32, 32), mode="bicubic").clamp(0, 1)
    return (255 * fine_N3SS).round().to(torch.uint8)


def convolutional() -> SelfEncoder:
    torch.manual_seed(0)
    return SelfEncoder(SmallNet(), torch.zeros(WIDTH), ImageSpec(size_px=32), "random")


def one_by_one(encode: Callable[[torch.Tensor], torch.Tensor], pixel_N3SS: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([encode(pixel_N3SS[i : i + 1]) for i in range(len(pixel_N3SS))]).numpy()


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
@pytest.mark.parametrize("channels_last", [False, True])
def test_features_equal_one_image_at_a_time(batch_size: int, channels_last: bool) -> None:
    encoder, pixel_N3SS = convolutional(), pixels(20)
    inference = Inference(encoder=encoder, device=CPU, channels_last=channels_last)
    chosen = np.array([3, 0, 19, 7, 7, 12, 1, 2, 5, 6, 18])
    found = inference.encode_chosen(pixel_N3SS.numpy(), chosen, batch_size)
    np.testing.assert_allclose(found, one_by_one(encoder.encode_image, pixel_N3SS)[chosen], atol=1e-5)
    assert inference.encode_chosen(pixel_N3SS.numpy(), chosen[:0], batch_size).shape == (0, WIDTH)


def test_the_last_batch_but_one_is_still_there_when_the_next_is() -> None:
    pixel_N3SS = pixels(11)
    inference = Inference(encoder=convolutional(), device=CPU)
    before: torch.Tensor | None = None
    for turn, batch in enumerate(inference.batches(pixel_N3SS.numpy(), np.arange(11), 2)):
        assert torch.equal(batch, pixel_N3SS[2 * turn : 2 * turn + 2])
        if before is not None:
            assert torch.equal(before, pixel_N3SS[2 * turn - 2 : 2 * turn])
        before = batch
    assert turn == 5


@pytest.mark.parametrize("precision", MOST_APART)
def test_low_precision_stays_within_its_bound_of_fp32(clip: Clip, precision: Precision) -> None:
    pixel_N3SS, chosen = pixels(96).numpy(), np.arange(96)
    exact = Inference.of(clip, CPU, "fp32").encode_chosen(pixel_N3SS, chosen, 32)
    found = Inference.of(clip, CPU, precision).encode_chosen(pixel_N3SS, chosen, 32)
    apart_N = np.linalg.norm(found - exact, axis=1)
    assert 0 < apart_N.max() < MOST_APART[precision]  # 0: it was not computed in another precision at all
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_fp32_is_what_the_model_does_by_itself(clip: Clip) -> None:
    pixel_N3SS = pixels(8)
    found = Inference.of(clip, CPU, "fp32").encode_chosen(pixel_N3SS.numpy(), np.arange(8), 8)
    with torch.no_grad():
        np.testing.assert_array_equal(found, clip.encode_image(pixel_N3SS).numpy())


def test_features_that_overflow_are_refused() -> None:
    encoder = convolutional()
    with torch.no_grad():
        encoder.model.layers[0].weight.mul_(1e6)
    chosen, pixel_N3SS = np.arange(4), pixels(4).numpy()
    encode = partial(Inference(encoder=encoder, device=CPU, precision="fp16").encode_chosen, pixel_N3SS, chosen, 4)
    with pytest.raises(UserError, match=r"features\.precision=fp16 .* bf16"):
        encode()
    exact = Inference(encoder=encoder, device=CPU, precision="fp32").encode_chosen(pixel_N3SS, chosen, 4)
    assert np.isfinite(exact).all()


def test_patches_are_no_convolutional_tower(clip: Clip) -> None:
    assert not is_convolutional(clip.model.visual)
    assert is_convolutional(convolutional().model)
    assert not is_convolutional(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)))


@pytest.mark.slow
@COMPILING
def test_a_compiled_encoder_gives_the_same_features_for_every_size_of_a_batch(clip: Clip) -> None:
    pixel_N3SS, chosen = pixels(21).numpy(), np.arange(21)
    compiled = Inference.of(clip, CPU, "fp32", compiled_size=8)
    exact = Inference.of(clip, CPU, "fp32").encode_chosen(pixel_N3SS, chosen, 8)
    compiled.encode_chosen(pixel_N3SS, chosen[:8], 8)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch_size in (8, 21):  # crops come in more images than a batch has
            found = compiled.encode_chosen(pixel_N3SS, chosen, batch_size)
            np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize("images", [1, 7, 8, 9, 16, 21])
def test_batches_of_one_size_are_the_images_in_their_order(images: int) -> None:
    pixel_N3SS, shapes = pixels(images), []

    def sums(pixel_B3SS: torch.Tensor) -> torch.Tensor:
        shapes.append(len(pixel_B3SS))
        return pixel_B3SS.float().sum(dim=(1, 2, 3))

    found = in_batches_of(8, sums)(pixel_N3SS)
    assert shapes == [8] * -(-images // 8)
    assert found.tolist() == [float(pixel_3SS.sum()) for pixel_3SS in pixel_N3SS]


@pytest.mark.slow
@COMPILING
def test_a_model_that_torch_cannot_compile_is_one_sentence(clip: Clip) -> None:
    torch._dynamo.reset()
    try:
        inference = Inference.of(clip, CPU, "fp32", compiled_size=3)
        said = r"features\.compile=true: torch cannot compile the model on this machine \(.*set it to"
        # By torch's own means: pytest's would leave the settings of later tests without a value.
        without_compiler = inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
        with without_compiler, pytest.raises(UserError, match=said):
            inference.encode_chosen(pixels(2).numpy(), np.arange(2), 3)
    finally:
        torch._dynamo.reset()
