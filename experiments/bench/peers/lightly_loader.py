"""The torchvision loader with lightly's transform for BYOL."""

from collections.abc import Sequence

import numpy as np
from lightly.transforms import BYOLTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

from experiments.bench.peers.torchvision_loader import Loader


def loader(images: Sequence[str] | np.ndarray, size: int, batch_size: int) -> Loader:
    """A loader of pairs with lightly's default settings."""
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=size),
        view_2_transform=BYOLView2Transform(input_size=size),
    )
    return Loader(images, transform, batch_size)
