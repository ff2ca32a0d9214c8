import pytest

from raydapt.data.caption_prompts import caption_prompts
from raydapt.data.named_sets import set_names


def test_the_prompts_of_the_paper():
    image, group = caption_prompts("eurosat")
    assert image == "Describe the land use in the satellite image concisely, less than 20 words."
    assert group == (
        "Describe the common visual attributes of the land use in all the satellite images concisely, "
        "less than 20 words."
    )
    assert caption_prompts("flowers102")[0] == "Describe the {} flower in the photo concisely, less than 20 words."


@pytest.mark.parametrize("source", [*set_names(), "photos/", "s3://bucket/x"])
def test_every_source_has_prompts(source):
    image, group = caption_prompts(source)
    assert image.count("{}") <= 1
    assert "{}" not in group
    assert caption_prompts("photos/")[0].startswith("Describe the object in the photo")
