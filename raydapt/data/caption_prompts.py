"""What a captioner is asked about the images of a set (LatteCLIP; the wordings are the authors')."""

from raydapt.data.named_sets import named_set

_LENGTH = "concisely, less than 20 words."
# What is to be described in one image (a {} is the image's zero-shot class), and what several images have in common.
_ASKED = {
    "flowers102": ("the {} flower in the photo", "flowers in all the photos"),
    "food101": ("the {} food in the photo", "foods in all the photos"),
    "eurosat": ("the land use in the satellite image", "land use in all the satellite images"),
    "sun397": ("the scene in the photo", "scenes in all the photos"),
    "dtd": ("the texture in the photo", "textures in all the photos"),
    "fgvc_aircraft": ("the aircraft in the photo", "aircrafts in all the photos"),
    "oxford_pets": ("the pet in the photo", "pets in all the photos"),
    "stanford_cars": ("the car in the photo", "cars in all the photos"),
    "ucf101": ("the action of the person in the photo", "person's actions in all the photos"),
    "caltech101": ("the object in the photo", "objects in all the photos"),
}
# Sets that the paper does not have, in the same form.
_ASKED |= {
    "resisc45": ("the scene in the satellite image", "scenes in all the satellite images"),
    "pacs_cartoon": ("the object in the drawing", "objects in all the drawings"),
    "digits": ("the digit in the photo", "digits in all the photos"),
    "mnist": ("the digit in the photo", "digits in all the photos"),
    "svhn": ("the number in the photo", "numbers in all the photos"),
    "gtsrb": ("the traffic sign in the photo", "traffic signs in all the photos"),
    "fer2013": ("the facial expression in the photo", "facial expressions in all the photos"),
    "fashion_mnist": ("the piece of clothing in the photo", "pieces of clothing in all the photos"),
}
_OTHERS = ("the object in the photo", "objects in all the photos")


def caption_prompts(source: str) -> tuple[str, str]:
    """The prompts for one image and for a group, by the name of the set; a plain pair for sets without a name."""
    known = named_set(source)
    one, group = _ASKED.get(known.name, _OTHERS) if known else _OTHERS
    return f"Describe {one} {_LENGTH}", f"Describe the common visual attributes of the {group} {_LENGTH}"
