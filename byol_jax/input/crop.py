"""The distribution of a training view's box, which is cut on the host or on the device.

References: "Inception" crops, Szegedy et al. 2015, arXiv:1409.4842; their ten attempts and their
fallback follow torchvision's RandomResizedCrop.
"""

from typing import NamedTuple

from byol_jax.errors import UserError

ATTEMPTS = 10
# Uniform numbers that a view takes: area and ratio of each attempt, two for where, one to flip.
DRAWS = 2 * ATTEMPTS + 3


class Crop(NamedTuple):
    """The distribution of a training view's box.

    Attributes:
      area: smallest and largest share of the image's area, uniform in between; within (0, 1].
      ratio: smallest and largest width / height, uniform in its logarithm; above 0.
      flip: the probability of a mirror image; within [0, 1].
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


def check_crop(crop: Crop) -> None:
    """Raises UserError if there is no such distribution."""
    if not 0 < crop.area[0] <= crop.area[1] <= 1:
        raise UserError(f"the area of a crop must lie within (0, 1], ascending, not {crop.area}.")
    if not 0 < crop.ratio[0] <= crop.ratio[1]:
        raise UserError(f"the ratio of a crop must be above 0, ascending, not {crop.ratio}.")
    if not 0 <= crop.flip <= 1:
        raise UserError(f"the probability of a flip must lie within [0, 1], not {crop.flip}.")


def check_size(image_size: int) -> None:
    """Raises UserError if no view has this height and width."""
    if image_size < 1:
        raise UserError(f"the image size must be at least 1, not {image_size}.")
