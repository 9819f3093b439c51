"""Decode and crop for each view in float32 tf.data, like the input of the BYOL authors.

For each view: a random box, the only part of the JPEG that is decoded, a flip, bicubic resizing,
and values in 0..1 as float32 (byol/utils/dataset.py in google-deepmind/deepmind-research; their
photometric augmentations run on the device, as ours do).
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from byol_jax.data import Crop

# TensorFlow with the settings of the library: on the CPU, and without its messages.
from byol_jax.data._tensorflow import tf


def batches(
    images: Sequence[str] | np.ndarray, size: int, batch_size: int, count: int
) -> Iterator[np.ndarray]:
    """Batches of pairs, over repeated random permutations of the images.

    Args:
      images: paths of JPEG files, or uint8 (n, height, width, channels).
      size: height and width of a view.
      batch_size: images in a batch.
      count: number of batches.

    Yields:
      float32 (2, batch_size, size, size, channels) in 0..1.
    """
    crop = Crop()
    in_memory = isinstance(images, np.ndarray)
    store = tf.constant(images if in_memory else list(images))

    def box(shape: tf.Tensor) -> tuple[tf.Tensor, ...]:
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            min_object_covered=0.0,
            aspect_ratio_range=crop.ratio,
            area_range=crop.area,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return begin[0], begin[1], extent[0], extent[1]

    def one_view(example: tf.Tensor) -> tf.Tensor:
        if in_memory:
            top, left, height, width = box(tf.shape(example))
            part = example[top : top + height, left : left + width]
        else:
            part = tf.image.decode_and_crop_jpeg(
                example, tf.stack(box(tf.image.extract_jpeg_shape(example))), channels=3
            )
        part = tf.image.random_flip_left_right(part)
        part = tf.image.resize(part, (size, size), tf.image.ResizeMethod.BICUBIC)
        return tf.clip_by_value(part / 255.0, 0.0, 1.0)

    def pair(index: tf.Tensor) -> tf.Tensor:
        example = store[index] if in_memory else tf.io.read_file(store[index])
        return tf.stack([one_view(example), one_view(example)])

    dataset = tf.data.Dataset.range(len(images)).shuffle(len(images)).repeat()
    dataset = dataset.take(count * batch_size)
    # One call per core; AUTOTUNE sometimes chooses fewer.
    cores = len(os.sched_getaffinity(0))
    dataset = dataset.map(pair, num_parallel_calls=cores, deterministic=False)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    for batch in dataset.as_numpy_iterator():
        yield batch.swapaxes(0, 1)
