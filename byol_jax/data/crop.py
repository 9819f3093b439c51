"""The geometric half of a view: which part of an image it shows, resized, perhaps mirrored.

Resizing is bicubic without antialiasing, as in the BYOL authors' own code; the result overshoots
the range of the pixels and is clipped and rounded back to uint8.

References: "Inception" crops, Szegedy et al. 2015, arXiv:1409.4842; their ten attempts and their
fallback follow torchvision's RandomResizedCrop.
"""

from math import log

from byol_jax.augment.crops import ATTEMPTS, DRAWS, Crop
from byol_jax.data._tensorflow import tf

# Values of an image that are worth turning into floats to be resized: 836 x 836 pixels in colour.
WORTH_FLOATS = 2**21


def random_views(
    image: tf.Tensor, size: int, crop: Crop, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Two independent random views of one image, a function of `seed` alone.

    Args:
      image: uint8 (H, W, C).
      size: height and width of a view.
      crop: the distribution of boxes and flips.
      seed: int64 (2,).

    Returns:
      Two views, uint8 (size, size, C).
    """
    # One draw for everything: small operations cost more than the numbers they compute.
    uniform = tf.random.stateless_uniform((2, DRAWS), seed, alg="philox")
    boxes = random_boxes(uniform[:, :-1], tf.shape(image), crop)
    flips = uniform[:, -1] < crop.flip
    first, second = (_resized(_cut(image, boxes[view]), size) for view in range(2))
    return _mirror_if(flips[0], first), _mirror_if(flips[1], second)


def random_boxes(uniform: tf.Tensor, image_shape: tf.Tensor, crop: Crop) -> tf.Tensor:
    """Boxes of random area, aspect ratio and place.

    The first of ATTEMPTS draws of area and ratio that fits into the image counts. If none fits, the
    box is the largest central one whose ratio is within `crop.ratio`.

    Args:
      uniform: float32 (n, DRAWS - 1), uniform in [0, 1).
      image_shape: int32, height and width first.
      crop: the distribution.

    Returns:
      int32 (n, 4): top, left, height, width.
    """
    height, width = tf.cast(image_shape[0], tf.float32), tf.cast(image_shape[1], tf.float32)
    low, high = crop.ratio
    area = height * width * _between(*crop.area, uniform[:, :ATTEMPTS])
    ratio = tf.exp(_between(log(low), log(high), uniform[:, ATTEMPTS : 2 * ATTEMPTS]))
    # Height first, width second, in the last axis of everything that follows.
    sizes = tf.round(tf.sqrt(tf.stack([area / ratio, area * ratio], -1)))
    limits = tf.stack([height, width])
    fits = tf.reduce_all((sizes >= 1) & (sizes <= limits), -1)
    first = tf.argmax(fits, 1)
    fallback = tf.maximum(
        tf.round(tf.stack([tf.minimum(height, width / low), tf.minimum(width, height * high)])), 1
    )
    found = tf.reduce_any(fits, 1)[:, None]
    size = tf.where(found, tf.gather(sizes, first, batch_dims=1), fallback)
    margin = limits - size
    anywhere = tf.floor(uniform[:, 2 * ATTEMPTS :] * (margin + 1))
    corner = tf.where(found, tf.minimum(anywhere, margin), tf.floor(margin / 2))
    return tf.cast(tf.concat([corner, size], 1), tf.int32)


def center_crop(image: tf.Tensor, size: int, fraction: float) -> tf.Tensor:
    """The evaluation view: the central square, resized.

    Args:
      image: uint8 (H, W, C).
      size: height and width of the view.
      fraction: side of the square as a share of min(H, W); within (0, 1].

    Returns:
      The view, uint8 (size, size, C): the image itself if it has this size and `fraction` is 1.
    """
    shape = tf.shape(image)[:2]
    side = tf.cast(tf.round(fraction * tf.cast(tf.reduce_min(shape), tf.float32)), tf.int32)
    side = tf.maximum(side, 1)
    corner = (shape - side) // 2
    return _resized(_cut(image, tf.concat([corner, [side, side]], 0)), size)


def resize(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Resizes an image, uint8 or float32 (H, W, C), by bicubic interpolation: float32, unclipped.

    This is the operation behind tf.image.resize, without the many small ones that check arguments.
    """

    def bicubic(image):
        return tf.raw_ops.ResizeBicubic(
            images=image[None], size=[height, width], half_pixel_centers=True
        )[0]

    # Of bytes it takes twice as long; but of many pixels few count, and turning all costs more.
    return tf.cond(
        tf.size(image) <= WORTH_FLOATS,
        lambda: bicubic(tf.cast(image, tf.float32)),
        lambda: bicubic(image),
    )


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


def _between(low: float, high: float, uniform: tf.Tensor) -> tf.Tensor:
    return low + (high - low) * uniform


def _cut(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    # Fewer operations than image[top : top + height, left : left + width].
    return tf.slice(image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [-1]], 0))


def _resized(image: tf.Tensor, size: int) -> tf.Tensor:
    return to_bytes(resize(image, size, size))


def _mirror_if(condition: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    # tf.reverse has a fast path for this: image[:, ::-1] takes as long as the whole rest of a view.
    return tf.cond(condition, lambda: tf.reverse(image, [1]), lambda: image)
