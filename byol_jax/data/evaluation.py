"""Batches for evaluation: one central view of every example, in an order that never changes."""

from collections.abc import Callable, Iterator

import numpy as np

from byol_jax.augment import crops
from byol_jax.data.arrays import ArraySource
from byol_jax.data.source import Source
from byol_jax.errors import UserError


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    crop_fraction: float = 0.875,
    limit: int | None = None,
    bad: Callable[[str], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The central view of every example, once, in an order that never changes.

    Args:
      source: where the images come from.
      batch_size: examples in a batch; the last one may have fewer.
      image_size: height and width S of a view.
      crop_fraction: side of the central square as a share of the shorter side of the image.
      limit: take only so many examples, drawn at random and always the same.
      bad: if given, what cannot be decoded is left out, and this is called with its name and fault.

    Yields:
      Images, uint8 (B, S, S, C), and labels, int32 (B,), or None.

    Raises:
      UserError: at the call if an argument is out of its range; while iterating if an image cannot
        be decoded and `bad` is None.
    """
    crops.check_size(image_size)
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}.")
    if not 0 < crop_fraction <= 1:
        raise UserError(f"the crop fraction must lie within (0, 1], not {crop_fraction}.")
    if limit is not None and limit < 1:
        raise UserError(f"the limit of examples must be at least 1, not {limit}.")
    if isinstance(source, ArraySource):
        return _of_arrays(source, batch_size, image_size, crop_fraction, limit)
    from byol_jax.data import pipeline  # needs TensorFlow

    return pipeline.decoded_views(source, batch_size, image_size, crop_fraction, limit, bad)


def _of_arrays(source, batch_size, size, crop_fraction, limit):
    """By two matrix products, as in crops.resized_crop: NumPy does, as all boxes are the same."""
    places = np.arange(source.num_examples)
    if limit is not None and limit < source.num_examples:
        places = np.random.default_rng(0).permutation(source.num_examples)[:limit]
    height, width = source.images.shape[1:3]
    top, left, side, _ = crops.central_box((height, width), crop_fraction)
    rows = np.asarray(crops.bicubic_matrix(top, side, height, size))
    columns = np.asarray(crops.bicubic_matrix(left, side, width, size))
    is_whole = (height, width) == (side, side) == (size, size)
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        images = source.images[chosen]
        if not is_whole:
            pixels = np.einsum(
                "yh,nhwc,xw->nyxc", rows, images.astype(np.float32), columns, optimize=True
            )
            images = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
        yield images, None if source.num_classes is None else source.labels[chosen]
