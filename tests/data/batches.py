"""Small sources, and training batches of them, for the tests of this folder."""

import numpy as np
from PIL import Image

from byol_jax.byol import Batch
from byol_jax.data import ShardOptions, from_arrays, train_batches


def numbered(n, size=8, channels=3):
    """A source of n images; image i has the value i % 256 and the label i."""
    images = np.zeros((n, size, size, channels), np.uint8)
    images[:] = (np.arange(n) % 256)[:, None, None, None]
    return from_arrays(images, np.arange(n))


def photos(n, seed=0, size=12):
    """A source of n different images of noise."""
    rng = np.random.default_rng(seed)
    return from_arrays(rng.integers(0, 256, (n, size, size, 3), np.uint8), np.arange(n))


def put(path, value=0, size=(10, 8), mode="RGB"):
    """Writes an image of one gray value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(path)


def train(source, num_steps, batch_size=8, image_size=6, seed=1, **kwargs):
    batches = train_batches(
        source,
        batch_size=batch_size,
        image_size=image_size,
        seed=seed,
        num_steps=num_steps,
        **kwargs,
    )
    return list(batches)


def same(left, right):
    """Whether two sequences of batches are equal to the bit."""
    return all(
        all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(left, right, strict=True)
    )


def shards(batch_size, count):
    """The shards of `count` processes, with two micro-batches."""
    rows = np.arange(batch_size).reshape(2, count, -1)
    return [ShardOptions(rows[:, i].ravel(), i, count) for i in range(count)]


def joined(parts):
    """The global batch, from those of all processes."""
    order = np.argsort(np.concatenate([part.positions for part in parts]))
    return Batch(*(np.concatenate(leaves)[order] for leaves in zip(*parts, strict=True)))
