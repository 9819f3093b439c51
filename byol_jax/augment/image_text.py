"""Views of an image and a text about it: view 1 is of the image, and view 2 of the text."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.augment import crops, image, text, video

CROP = 2  # what the key of a pair is folded with, after the two views


@dataclasses.dataclass(frozen=True)
class Policy:
    """What makes the views of a pair.

    Attributes:
      view1: strengths for the image.
      view2: strengths for the text.
      crop: the distribution of boxes and flips of the image.
      size: height and width of a view of the image.
      mean: of each channel, for values in 0..1.
      std: likewise.
      vocabulary: the tokens by number.
    """

    view1: image.View
    view2: text.View
    crop: crops.Crop
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    vocabulary: tuple[str, ...]

    def __call__(self, key: jax.Array, example: dict[str, jax.Array]) -> tuple[dict, dict]:
        """The views of one pair: {"image": float32 (size, size, 3)}, {"text": int32 (length,)}.

        Args:
          key: a PRNG key for this pair alone.
          example: "image", uint8 (height, width, 3), and "text", int32 (length,).
        """
        of_image, of_text, of_crop = (jax.random.fold_in(key, i) for i in (0, 1, CROP))
        (box,) = crops.random_views(example["image"], self.size, self.crop, of_crop, count=1)
        planes = jnp.moveaxis(box.astype(jnp.float32) / 255, -1, 0)
        seen = jnp.moveaxis(image.view(self.view1, of_image, planes, self.mean), 0, -1)
        is_piece = jnp.asarray(np.array([t.startswith(text.CONTINUES) for t in self.vocabulary]))
        tokens = text.augment(self.view2, of_text, example["text"], is_piece)
        return {"image": image.normalize(seen, self.mean, self.std)}, {"text": tokens}

    def preprocess(self, examples: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Pairs as the encoder takes them: see `preprocess`."""
        return preprocess(examples, self.size, self.mean, self.std)


def preprocess(
    examples: dict[str, jax.Array], size: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, jax.Array]:
    """Images, texts or both of n pairs, as the encoder takes them.

    Args:
      examples: "image", uint8 (n, height, width, 3), of which the central squares are resized and
        normalised; "text", int32 (n, length), which stays as it is.
      size: height and width of the result.
      mean: of each channel, for values in 0..1.
      std: likewise.

    Returns:
      The same names: float32 (n, size, size, 3) and int32 (n, length).
    """
    found = dict(examples)
    if "image" in found:
        square = video.central(found["image"][:, None], size)[:, 0]
        found["image"] = image.normalize(square, mean, std)
    return found
