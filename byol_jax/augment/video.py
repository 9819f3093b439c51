"""Views of video: those of images, with the same random amounts for all frames of a clip.

Feichtenhofer et al. 2021, "A large-scale study on unsupervised spatiotemporal representation
learning" (arXiv 2104.14558): each view is of a clip of its own.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from byol_jax.augment import crops, image

CROPS = 2  # what the key of an example is folded with, after the two views of `image.Policy`


@dataclasses.dataclass(frozen=True)
class Policy:
    """What makes two views of a video, or more.

    Attributes:
      image: the photometric half, and what else `image.Policy` does to the crops of an image.
      crop: the distribution of boxes and flips.
      size: height and width of a view.
    """

    image: image.Policy
    crop: crops.Crop
    size: int

    def __call__(self, key: jax.Array, example: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        """The views of one example, float32 (frames, size, size, 3), augmented and normalised.

        Args:
          key: a PRNG key for this example alone.
          example: uint8 "clip1", "clip2" and so on, (frames, height, width, 3): the clip of each
            view; without "clip2" both are of "clip1". Those from the third on are augmented as
            view 1 is.
        """
        numbers = range(1, max(2, len(example)) + 1)
        clips = [example.get(f"clip{i}", example["clip1"]) for i in numbers]
        key_of_crops = jax.random.fold_in(key, CROPS)

        def crop(key: jax.Array, frame: jax.Array) -> jax.Array:
            return crops.random_views(frame, self.size, self.crop, key, count=1)[0]

        # The keys are not mapped: every frame draws the same.
        views = [
            jax.vmap(partial(crop, jax.random.fold_in(key_of_crops, i)))(clip)
            for i, clip in enumerate(clips)
        ]
        more = jnp.stack(views[2:], axis=1) if views[2:] else []
        frames = {"global": jnp.stack(views[:2], axis=1), "local": more}
        return jax.vmap(partial(self.image, key))(frames)

    def preprocess(self, clips: jax.Array | dict[str, jax.Array]) -> jax.Array:
        """Clips as an encoder takes them: see `preprocess`."""
        return preprocess(clips, self.size, self.image.mean, self.image.std)


def preprocess(
    clips: jax.Array | dict[str, jax.Array],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> jax.Array:
    """The central square of each frame, resized, and normalised for each channel.

    Args:
      clips: uint8 (n, frames, height, width, 3), or a dictionary with that as "clip1".
      size: height and width of the result.
      mean: of each channel, for values in 0..1.
      std: likewise.

    Returns:
      Float32 (n, frames, size, size, 3).
    """
    clips = clips["clip1"] if isinstance(clips, dict) else clips
    return image.normalize(central(clips, size), mean, std)


def central(clips: jax.Array, size: int) -> jax.Array:
    """The central square of each frame, resized; frames of that size stay as they are.

    Args:
      clips: uint8 (n, frames, height, width, channels).
      size: height and width of the result.

    Returns:
      Uint8 (n, frames, size, size, channels).
    """
    shape = clips.shape[2:4]
    if shape == (size, size):
        return clips
    box = crops.central_box(jnp.array(shape, jnp.float32), 1.0)
    one = partial(crops.resized_crop, box=box, flip=jnp.array(False), size=size)
    return jax.vmap(jax.vmap(one))(clips)
