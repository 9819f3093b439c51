"""Maps of features as colours: the first three principal components as red, green and blue.

As in DINOv2 (arXiv 2304.07193, figure 1).
"""

import numpy as np

from byol_jax import data
from byol_jax.errors import UserError
from byol_jax.report import principal
from byol_jax.runs.encoder import Encoder

PICTURES = 12
SIDE = 224  # of images: those that an encoder was trained on may be too small for a map of features
LAYERS = "features", "layer3", "layer2", "layer1"  # the first with enough cells, else the finest
ENOUGH = 12  # cells across


def colours(
    encoder: Encoder, source: data.ImageSource, indices: list[int]
) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Some images of a source, and the colours of their features.

    Args:
      encoder: of the run.
      source: of images that can be decoded.
      indices: of the images, ascending.

    Returns:
      uint8 (n, side, side, channels), uint8 (n, h, w, 3) and the name of the layer; None if the
      encoder has no such maps.
    """
    part = data.subset(source, np.array(indices), source.name)
    best, own = None, encoder.config["image_size"]
    for side in dict.fromkeys((max(SIDE, own), own)):
        batches = data.eval_batches(
            part, batch_size=len(indices), image_size=side, crop_fraction=encoder.crop_fraction
        )
        images = np.concatenate([images for images, _ in batches])
        for layer in LAYERS:
            try:
                maps = encoder.embed_dense(images, layer)
            except UserError:  # no such size, or no such layer
                continue
            if best is None or maps.shape[1] > best[1].shape[1]:
                best = images, components(maps), layer
            if maps.shape[1] >= ENOUGH:
                return best
    return best


def components(maps: np.ndarray) -> np.ndarray:
    """Colours of maps of features, float (n, h, w, channels): uint8 (n, h, w, 3).

    The components are those of all cells of all images, each scaled from its 2nd to its 98th
    percentile. Where features have fewer than three dimensions, the other colours are 0.
    """
    cells = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    found = principal.components(cells, 3)
    low, high = np.percentile(found, [2, 98], axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * scaled).astype(np.uint8).reshape(*maps.shape[:3], 3)
