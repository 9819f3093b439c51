"""The embedded data set: ten kinds of texture, generated with NumPy, to see BYOL learn.

BYOL learns what two views of an image have in common, so a small data set is learnable if its
images fit its views (crops of 30% to 100% of the area, flips, strong jitter of brightness and
contrast):

* Classes differ in what such views keep: the kind of texture. Neither a flip nor magnifying up to
  1.8 times turns one into another, and classes do not differ in mean, contrast or position.
* Images of one class differ in what such views destroy: phase, a little scale, brightness,
  contrast, and the direction and strength of the light. There is no colour: jitter leaves enough
  of it to distinguish images, and BYOL would learn that instead.

A linear classifier on raw pixels is right for a quarter to a third of the test split. Results do
not predict how well a setting works on photographs.
"""

import functools

import numpy as np

from byol_jax.errors import DataError

SIZE = 32
SPLITS = {"train": (10_000, 0), "test": (2_000, 1)}  # number of images, seed


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Generates a split: images, uint8 (N, 32, 32, 1), and labels, int32 (N,).

    Raises:
      DataError: if the split is neither "train" (10,000 images) nor "test" (2,000).
    """
    if split not in SPLITS:
        raise DataError(f"embedded has no split {split!r}; choose one of {', '.join(SPLITS)}.")
    return _drawn(*SPLITS[split])


@functools.cache
def _drawn(num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = draw(num_examples, seed)
    images.flags.writeable = labels.flags.writeable = False  # as all who load them share them
    return images, labels


def draw(num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Generates textures, with the ten classes in rotation.

    Args:
      num_examples: how many images, N.
      seed: the same seed gives the same images.

    Returns:
      Images, uint8 (N, 32, 32, 1), and labels, int32 (N,), which index CLASS_NAMES.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(num_examples, dtype=np.int32) % len(CLASS_NAMES)
    images = np.empty((num_examples, SIZE, SIZE, 1), np.uint8)
    for label, name in enumerate(CLASS_NAMES):
        chosen = labels == label
        n = np.count_nonzero(chosen)
        texture = NOISES[name](rng, n) if name in NOISES else PATTERNS[name](rng, *_grid(rng, n))
        images[chosen, :, :, 0] = _light(texture, rng)
    return images, labels


def _light(pattern, rng):
    """Patterns, float (n, 32, 32), each under its own light, as uint8."""
    n = len(pattern)
    # Otherwise classes would differ in how much of an image is dark.
    pattern = pattern - pattern.mean((1, 2), keepdims=True)
    pattern = pattern / (pattern.std((1, 2), keepdims=True) + 1e-6)
    y, x = (np.linspace(-1, 1, SIZE),) * 2
    angle = _uniform(rng, n, 0, 2 * np.pi)
    slope = _uniform(rng, n, 0, 60)
    light = slope * (np.cos(angle) * x[None, None, :] + np.sin(angle) * y[None, :, None])
    brightness = _uniform(rng, n, 70, 185)
    contrast = np.exp(_uniform(rng, n, np.log(7), np.log(55)))
    noise = rng.normal(0, 2, pattern.shape)
    return np.clip(np.rint(brightness + light + contrast * pattern + noise), 0, 255).astype(
        np.uint8
    )


def _uniform(rng, n, low, high):
    """One number per image, shape (n, 1, 1)."""
    return rng.uniform(low, high, (n, 1, 1))


def _grid(rng, n):
    """Coordinates x and y of the pixels, (n, 32, 32), random origin, scale within 22% of 1."""
    scale = np.exp(_uniform(rng, n, -0.2, 0.2))
    y, x = np.mgrid[:SIZE, :SIZE]
    return (x * scale + _uniform(rng, n, 0, 200), y * scale + _uniform(rng, n, 0, 200))


def _edge(value, softness):
    """Turns a smooth value into two levels, -1 and 1, with an antialiased edge where it is 0."""
    return np.tanh(value / softness)


def _wave(phase, period):
    return np.sin(2 * np.pi * phase / period)


def _distance(phase, period):
    """Distance to the nearest multiple of the period."""
    return np.abs((phase + period / 2) % period - period / 2)


def _diagonal_stripes(rng, x, y):
    # In both directions, as a flip exchanges them.
    direction = np.where(rng.random((len(x), 1, 1)) < 0.5, 1, -1)
    return _edge(_wave(x + direction * y, 10), 0.5)


def _dots(rng, x, y):
    shift = 4 * (np.floor(y / 8) % 2)  # every other row is shifted by half a period
    return _edge(2.6 - np.hypot(_distance(x + shift, 8), y % 8 - 4), 0.7)


def _rings(rng, x, y):
    center_x, center_y = (_uniform(rng, len(x), 0.25, 0.75) for _ in range(2))
    radius = np.hypot(x - _at(x, center_x), y - _at(y, center_y))
    return _edge(_wave(radius + _uniform(rng, len(x), 0, 6.5), 6.5), 0.5)


def _bricks(rng, x, y):
    shift = 7 * (np.floor(y / 7) % 2)
    return _edge(np.minimum(_distance(y, 7), _distance(x + shift, 14)) - 0.9, 0.5)


def _at(coordinate, fraction):
    """The coordinate at a fraction of the way through the image."""
    first, last = coordinate.min((1, 2), keepdims=True), coordinate.max((1, 2), keepdims=True)
    return first + fraction * (last - first)


def _noise(rng, n, period):
    """Noise of unit variance whose waves have about this period, in any direction."""
    scale = np.exp(_uniform(rng, n, -0.2, 0.2))
    fy, fx = np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None, :]
    octaves = np.log2(np.maximum(np.hypot(fy, fx), 1e-6) * period / scale)
    spectrum = np.fft.rfft2(rng.standard_normal((n, SIZE, SIZE))) * np.exp(-((octaves / 0.4) ** 2))
    noise = np.fft.irfft2(spectrum)
    return noise / noise.std((1, 2), keepdims=True)


PATTERNS = {  # of the coordinates from `_grid`
    "horizontal stripes": lambda rng, x, y: _edge(_wave(y, 7), 0.5),
    "vertical stripes": lambda rng, x, y: _edge(_wave(x, 7), 0.5),
    "diagonal stripes": _diagonal_stripes,
    "checkerboard": lambda rng, x, y: _edge(_wave(x, 10) * _wave(y, 10), 0.2),
    "dots": _dots,
    "rings": _rings,
    "bricks": _bricks,
    "zigzag": lambda rng, x, y: _edge(_wave(y + _distance(x, 12), 8), 0.5),
}
NOISES = {
    "blobs": lambda rng, n: _edge(_noise(rng, n, 11), 1.0),
    "grain": lambda rng, n: _noise(rng, n, 3),
}
CLASS_NAMES = (*PATTERNS, *NOISES)
