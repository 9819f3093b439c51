"""Sources whose images are in memory, all of one size. Only `decode` needs TensorFlow."""

import functools

import numpy as np

from byol_jax.data.source import RandomAccessSource, check_labels
from byol_jax.errors import DataError


class ArraySource(RandomAccessSource):
    """Images in one uint8 array; use `from_arrays`, which checks them.

    Attributes:
      images: uint8 (N, H, W, C).
      labels: int32 (N,), -1 without labels.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None,
        fingerprint: str | None = None,
    ):
        """Keeps images, uint8 (N, H, W, C), and labels, integers (N,), or None."""
        labels = np.full(len(images), -1) if class_names is None else labels
        super().__init__(name, labels, images.shape[-1], class_names)
        self.images = images
        self._fingerprint = fingerprint

    def fingerprint(self):  # noqa: D102 (see Source)
        return self._fingerprint

    @functools.cached_property
    def _images_tensor(self):
        from byol_jax.data._tensorflow import tf

        with tf.init_scope():  # outside the graph that asks first
            return tf.constant(self.images)

    def decode(self, raw):  # noqa: D102 (see Source)
        (index,) = raw
        return self._images_tensor[index], self.labels_tensor[index]

    def describe(self, index):  # noqa: D102 (see Source)
        return f"image {index} of {self.name}"


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    name: str = "arrays",
    class_names: tuple[str, ...] | None = None,
    fingerprint: str | None = None,
) -> ArraySource:
    """A source made of arrays.

    Args:
      images: uint8 (N, H, W, C), values 0 to 255, C 1 (gray), 3 (RGB) or any other.
      labels: integers (N,) from 0 up, or None.
      name: what to call the source in logs and messages.
      class_names: a name for each label; the numbers "0", "1", ... if left out.
      fingerprint: a digest of the images, if there is one: see `Source.fingerprint`.

    Raises:
      DataError: if a shape, dtype or value is not as above.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise DataError(f"{name}: images must be uint8 from 0 to 255, not {images.dtype}.")
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"{name}: images must have a shape (N, H, W, C), such as with C 1 or 3, and nothing "
            f"empty, not {images.shape}."
        )
    if images.shape[1] <= 4 < images.shape[3]:
        raise DataError(
            f"{name}: images of shape {images.shape} seem to have their channels first, and they "
            "must be last: (N, H, W, C)."
        )
    class_names = check_labels(name, len(images), labels, class_names)
    return ArraySource(name, images, labels, class_names, fingerprint)
