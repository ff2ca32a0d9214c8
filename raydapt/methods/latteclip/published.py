"""What the authors' scripts have for each image set; batches of 512 in all."""

from dataclasses import dataclass

_BATCH = 512


@dataclass(frozen=True)
class Lengths:
    """Of one set."""

    images: int
    """That are adapted to, train and val."""
    epochs: int
    warmup_steps: int

    @property
    def warmup_epochs(self) -> float:
        """The warm-up in epochs, which other batch sizes keep."""
        return self.warmup_steps / (self.images // _BATCH)


LENGTHS = {
    "caltech101": Lengths(5_777, 50, 10),
    "dtd": Lengths(3_948, 100, 10),
    "eurosat": Lengths(18_900, 15, 40),
    "fgvc_aircraft": Lengths(6_667, 50, 15),
    "flowers102": Lengths(5_726, 50, 12),
    "food101": Lengths(70_700, 15, 140),
    "oxford_pets": Lengths(3_680, 100, 10),
    "ucf101": Lengths(9_537, 50, 20),
}
"""By the name of the set."""
