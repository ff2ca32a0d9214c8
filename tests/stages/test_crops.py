import dataclasses

import pytest
import torch

from raydapt.artefacts.crops import CropSpec, boxes_of, load_crops
from raydapt.data.decode import decode_image
from raydapt.data.sources import read_part, resolve_source
from raydapt.models.clip import load_clip
from raydapt.settings.groups import DataSettings, RaySettings, StageSettings
from raydapt.stages.context import StageContext
from raydapt.stages.crops import crops_stage, encode_with_crops
from raydapt.store.artefact import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_the_stage_keeps_the_features_of_images_and_crops(tmp_path):
    clip, crops = load_clip("mini"), CropSpec(crops=3, least_side=0.5, most_side=0.9)
    spec, source = (
        dataclasses.replace(clip.image_spec, size_px=64),
        resolve_source("digits", rows_per_part=20, limit=40),
    )
    arguments = {
        "clip_name": "mini",
        "clip_identity": clip.identity,
        "image_spec": spec,
        "crops": crops,
    }
    context = StageContext(
        store=Store(str(tmp_path)),
        ray=RaySettings(address="local", cpus=4, progress=False),
        settings=StageSettings(rows_per_part=20),
        data=DataSettings(),
    )
    result = crops_stage(source, context, **arguments)
    feature = load_crops(result.artefact)
    assert feature.shape == (40, 4, clip.embed_dim)
    table = read_part(source.parts[1], DataSettings())
    pixel = torch.stack(
        [
            torch.from_numpy(decode_image(image.as_py(), spec, max_pixels=10**6, max_bytes=10**6))
            for image in table["image"]
        ]
    )
    expected = encode_with_crops(clip, pixel, boxes_of(table["id"].to_pylist(), crops))
    torch.testing.assert_close(feature[20:], expected.clone(), atol=1e-5, rtol=0)
    assert crops_stage(source, context, **arguments).reused
