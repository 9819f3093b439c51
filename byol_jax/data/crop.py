"""Crops on the host, with TensorFlow: random views for training, the central one for evaluation.

Resizing is bicubic without antialiasing, as in the BYOL authors' code; the result overshoots the
range of the pixels and is clipped and rounded to uint8.
"""

from collections.abc import Sequence

from byol_jax.augment import crops
from byol_jax.augment.crops import Crop
from byol_jax.data._tensorflow import tf

# ResizeBicubic is twice as fast on floats, but converting more values than these (836 x 836 pixels
# in colour) costs more than it saves.
MAX_VALUES_AS_FLOATS = 2**21


def random_views(
    images: Sequence[tf.Tensor], size: int, crop: Crop, seed: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Independent random views of some images, a function of `seed` alone.

    Args:
      images: uint8 (H, W, C): what each view is taken from; usually the same one.
      size: height and width S of a view.
      crop: the distribution of boxes and flips.
      seed: int64 (2,).

    Returns:
      The views, uint8 (S, S, C) each.
    """
    # One draw for everything: small operations cost more than the numbers they compute.
    uniform = tf.random.stateless_uniform((len(images), crop.draws), seed, alg="philox")
    is_one = all(image is images[0] for image in images)

    def boxes_of(image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        return crops.random_boxes(draws[:, :-1], shape, crop, xp=tf)

    if is_one:
        boxes = boxes_of(images[0], uniform)
    else:  # of other sizes
        boxes = [boxes_of(image, uniform[i : i + 1])[0] for i, image in enumerate(images)]
    flips = uniform[:, -1] < crop.flip
    views = [_resized_crop(image, boxes[i], size) for i, image in enumerate(images)]
    return tuple(_flip_if(flips[i], view) for i, view in enumerate(views))


def center_crop(image: tf.Tensor, size: int, fraction: float) -> tf.Tensor:
    """The evaluation view: the central square, resized.

    Args:
      image: uint8 (H, W, C).
      size: height and width S of the view.
      fraction: side of the square as a fraction of min(H, W); within (0, 1].

    Returns:
      The view, uint8 (S, S, C): the image itself if it has this size and `fraction` is 1.
    """
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    return _resized_crop(image, crops.central_box(shape, fraction, xp=tf), size)


def to_bytes(pixels: tf.Tensor) -> tf.Tensor:
    """Rounds (halves to even) and clips, to uint8: in a quarter of saturate_cast's time."""
    quantized = tf.raw_ops.QuantizeV2(
        input=pixels,
        min_range=0.0,
        max_range=255.0,
        T=tf.quint8,
        mode="SCALED",
        round_mode="HALF_TO_EVEN",
    )
    return tf.bitcast(quantized.output, tf.uint8)


def _resized_crop(image: tf.Tensor, box: tf.Tensor, size: int) -> tf.Tensor:
    box = tf.cast(box, tf.int32)
    # Fewer operations than image[top : top + height, left : left + width].
    part = tf.slice(image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [-1]], 0))

    def bicubic(pixels: tf.Tensor) -> tf.Tensor:
        # The operation behind tf.image.resize, without the many small ones that check arguments.
        return tf.raw_ops.ResizeBicubic(
            images=pixels[None], size=[size, size], half_pixel_centers=True
        )[0]

    resized = tf.cond(
        tf.size(part) <= MAX_VALUES_AS_FLOATS,
        lambda: bicubic(tf.cast(part, tf.float32)),
        lambda: bicubic(part),
    )
    return to_bytes(resized)


def _flip_if(condition: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    # tf.reverse has a fast path for this; image[:, ::-1] takes as long as the rest of a view.
    return tf.cond(condition, lambda: tf.reverse(image, [1]), lambda: image)
