"""Views of signals: windows, scaling, noise and masks of arrays of numbers.

Each operation takes one normalised array (first axis: time, or the numbers of a table) and is off
at the strength 0 or 1 that its field says. All are common for wearable sensors: Um et al. 2017,
"Data augmentation of wearable sensor data for Parkinson's disease monitoring using convolutional
neural networks" (arXiv 1706.00527; jittering, scaling, window slicing as of Le Guennec et al.
2016); masks of time as in SpecAugment (arXiv 1904.08779, section 2); `drop_share` as in SCARF
(arXiv 2106.15147), with the mean in place of a draw from the marginal distribution.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

# What the key of a view is folded with, so that no operation changes the draws of another.
WINDOW, SCALE, JITTER, MASK, DROP, FUNCTION = range(6)


@dataclasses.dataclass(frozen=True)
class View:
    """Strengths of one view; all off by default."""

    window_min: float = 1.0  # share of the first axis, uniform; the window is resized to all of it
    window_max: float = 1.0
    scale_std: float = 0.0  # of a factor around 1 for each channel (the last axis), normal
    jitter_std: float = 0.0  # of noise on each number, in standard deviations of its channel
    mask_share: float = 0.0  # largest share of the first axis in one masked block; uniform from 0
    drop_share: float = 0.0  # of single numbers that are masked, each independently


def window(x: jax.Array, start: jax.Array, length: jax.Array) -> jax.Array:
    """A window of an array, resized to all of its first axis by linear interpolation.

    Args:
      x: (time, ...).
      start: (), first sample, at least 0.
      length: (), samples from the first to the last, with start + length <= time - 1.

    Returns:
      As `x`; sample i is `x` at start + i * length / (time - 1).
    """
    time = x.shape[0]
    at = start + jnp.arange(time) * (length / max(time - 1, 1))
    before = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, max(time - 2, 0))
    after = jnp.minimum(before + 1, time - 1)
    share = (at - before).reshape(-1, *[1] * (x.ndim - 1))
    return (1 - share) * x[before] + share * x[after]


def augment(config: View, key: jax.Array, x: jax.Array) -> jax.Array:
    """Applies what `config` asks for; with nothing on, not a single operation.

    Args:
      config: strengths.
      key: the PRNG key of the view.
      x: float32 (time, ...), normalised: the mean of a channel is 0, which masks fill in.

    Returns:
      As `x`.
    """

    def key_of(operation: int) -> jax.Array:
        return jax.random.fold_in(key, operation)

    time, rest = x.shape[0], [1] * (x.ndim - 1)
    if min(config.window_min, config.window_max) < 1:
        length_u, start_u = jax.random.uniform(key_of(WINDOW), (2,))
        spread = config.window_max - config.window_min
        length = (config.window_min + spread * length_u) * (time - 1)
        x = window(x, start_u * (time - 1 - length), length)
    if config.scale_std > 0:
        channels = (*rest, x.shape[-1]) if x.ndim > 1 else ()
        factor = jax.random.normal(key_of(SCALE), channels)
        x = x * (1 + config.scale_std * factor)
    if config.jitter_std > 0:
        x = x + config.jitter_std * jax.random.normal(key_of(JITTER), x.shape)
    if config.mask_share > 0:
        share_u, start_u = jax.random.uniform(key_of(MASK), (2,))
        length = jnp.round(config.mask_share * share_u * time)
        start = jnp.floor(start_u * (time - length + 1))
        index = jnp.arange(time)
        x = jnp.where(((index >= start) & (index < start + length)).reshape(-1, *rest), 0, x)
    if config.drop_share > 0:
        x = jnp.where(jax.random.uniform(key_of(DROP), x.shape) < config.drop_share, 0, x)
    return x


@dataclasses.dataclass(frozen=True)
class Policy:
    """What makes two views of an example of one array, or of two that belong together.

    Attributes:
      view1: strengths of view 1.
      view2: and of view 2.
      mean: of each channel (the last axis; of all numbers, where there is one axis), by array.
      std: likewise.
      function: one of the user's own, which changes a view last: (key, float32 (time, ...)) -> the
        like.
    """

    view1: View
    view2: View
    mean: Mapping[str, tuple[float, ...]]
    std: Mapping[str, tuple[float, ...]]
    function: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    def __call__(self, key: jax.Array, example: dict[str, jax.Array]) -> tuple:
        """The views of one example, normalised and augmented.

        Args:
          key: a PRNG key for this example alone.
          example: float32 (time, ...) by name. Of one array both views are taken; of two, view 1
            is of the first (of `mean`) and view 2 of the second.

        Returns:
          Two arrays, or two dictionaries of one array each.
        """
        keys = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        arrays, names = self.normalize(example), [*self.mean]
        one, other = (names * 2)[:2]
        first = self._view(self.view1, keys[0], arrays[one])
        second = self._view(self.view2, keys[1], arrays[other])
        return (first, second) if one == other else ({one: first}, {other: second})

    def _view(self, config: View, key: jax.Array, x: jax.Array) -> jax.Array:
        view = augment(config, key, x)
        if self.function is None:
            return view
        return self.function(jax.random.fold_in(key, FUNCTION), view)

    def preprocess(self, examples: dict[str, jax.Array]) -> jax.Array | dict[str, jax.Array]:
        """Normalises a batch of examples without augmentation, for the encoder."""
        arrays = self.normalize(examples)
        return arrays if len(self.mean) > 1 else next(iter(arrays.values()))

    def normalize(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """(x - mean) / std for each channel of those arrays that are given."""
        return {
            name: (arrays[name] - jnp.asarray(self.mean[name], jnp.float32))
            / jnp.asarray(self.std[name], jnp.float32)
            for name in self.mean
            if name in arrays
        }
