"""Small images of one size, in memory: views of a whole batch at a time.

On one small image an operation takes longer to start than to run, so here each works on a batch.
As all images have one size, a crop with its bicubic resizing is two small matrix products, and a
mirror image is the second matrix upside down. Small images have few boxes: all their matrices are
made beforehand, by resizing the identity.
"""

from __future__ import annotations

import numpy as np

from byol_jax.augment.crops import DRAWS, Crop
from byol_jax.data._tensorflow import tf
from byol_jax.data.arrays import ArraySource
from byol_jax.data.crop import random_boxes, resize, to_bytes
from byol_jax.data.source import Source

# Height, width and size of a view. Beyond, matrix products cost more than they save, and all
# matrices together are large: 1,176 of 48 x 48 take 11 MB.
LARGEST = 48


class SmallImages:
    """The images of a source, to cut views of; use `small_images`, which says where that pays."""

    def __init__(self, source: ArraySource, size: int):
        """Copies the images of `source`, for views of height and width `size`."""
        self._shape = source.images.shape[1:]
        height, width, _ = self._shape
        # (N, H, C, W), in which each of the two products serves all channels at once.
        self._images = tf.constant(source.images.swapaxes(2, 3))
        self._labels = tf.constant(source.labels)
        self._rows = tf.constant(matrices(height, size))
        columns = matrices(width, size).swapaxes(1, 2)
        self._columns = tf.constant(np.concatenate([columns, columns[:, :, ::-1]]))

    def labels(self, places: tf.Tensor) -> tf.Tensor:
        """The labels at some places, int32 (n,); -1 without."""
        return tf.gather(self._labels, places)

    def random_views(self, places: tf.Tensor, crop: Crop, uniform: tf.Tensor) -> tf.Tensor:
        """Two independent random views of each of some images.

        Args:
          places: int64 (n,): which images.
          crop: the distribution of boxes and flips.
          uniform: float32 (2, n, DRAWS), uniform in [0, 1).

        Returns:
          Uint8 (n, 2, S, S, C).
        """
        height, width, channels = self._shape
        boxes = random_boxes(tf.reshape(uniform[..., :-1], [-1, DRAWS - 1]), (height, width), crop)
        top, left, box_height, box_width = tf.unstack(boxes, axis=1)
        is_mirrored = tf.reshape(uniform[..., -1] < crop.flip, [-1])
        rows = tf.gather(self._rows, number(top, box_height, height))
        mirrored = tf.where(is_mirrored, self._columns.shape[0] // 2, 0)
        columns = tf.gather(self._columns, number(left, box_width, width) + mirrored)
        size = rows.shape[1]
        images = tf.cast(tf.gather(self._images, places), tf.float32)
        images = tf.reshape(images, [-1, height * channels, width])
        pixels = tf.concat([images, images], 0) @ columns
        pixels = rows @ tf.reshape(pixels, [-1, height, channels * size])
        pixels = tf.reshape(to_bytes(pixels), [-1, size, channels, size])
        views = tf.transpose(pixels, [0, 1, 3, 2])
        return tf.transpose(tf.reshape(views, [2, -1, size, size, channels]), [1, 0, 2, 3, 4])


def small_images(source: Source, size: int) -> SmallImages | None:
    """The images of a source where they are in memory, and they and their views small."""
    if isinstance(source, ArraySource) and max(*source.images.shape[1:3], size) <= LARGEST:
        return SmallImages(source, size)
    return None


def matrices(full: int, size: int) -> np.ndarray:
    """What each of `size` pixels takes of each of `full`, resizing each stretch of them.

    Returns:
      float32 (full * (full + 1) / 2, size, full); the matrix of a stretch is at its `number`.
    """
    result = np.zeros((full * (full + 1) // 2, size, full), np.float32)
    of_stretch = iter(result)
    for length in range(1, full + 1):
        weights = resize(tf.eye(length)[..., None], size, length)[..., 0]
        for start in range(full - length + 1):
            next(of_stretch)[:, start : start + length] = weights
    return result


def number(start: tf.Tensor, length: tf.Tensor, full: int) -> tf.Tensor:
    """Which one of all stretches of `full` pixels begins at `start`; they come by length."""
    shorter = (length - 1) * full - (length - 1) * (length - 2) // 2
    return shorter + start
