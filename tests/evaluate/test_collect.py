"""Collecting features: the arrays, several encoders in one pass, and how much memory it takes."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from byol_jax.errors import DataError
from byol_jax.evaluate import collect, pixels


def batches(*sizes):
    """Constant images 4 x 4 that count up, and their labels."""
    count = 0
    for size in sizes:
        labels = np.arange(count, count + size, dtype=np.int32)
        images = np.broadcast_to(labels[:, None, None, None], (size, 4, 4, 3))
        yield images.astype(np.uint8), labels
        count += size


def test_pixels_of_larger_images_are_shrunk_as_pillow_does():
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), np.uint8)
    found = pixels(images).reshape(2, 32, 32, 3)
    for image, shrunk in zip(images, found, strict=True):
        for channel in range(3):
            floats = Image.fromarray(image[..., channel].astype(np.float32))
            wanted = np.asarray(floats.resize((32, 32), Image.Resampling.BICUBIC)) / 255
            np.testing.assert_allclose(shrunk[..., channel], wanted, atol=1e-6)


def test_collect_embeds_all_batches_in_order():
    features, labels = collect(pixels, batches(5, 5, 2), num_examples=12)
    assert features.shape == (12, 48) and features.dtype == np.float32
    np.testing.assert_array_equal(labels, np.arange(12))
    np.testing.assert_array_equal(features[:, 7] * 255, np.arange(12))
    assert labels.dtype == np.int32


def test_collect_feeds_several_encoders_from_one_pass():
    encoders = {"pixels": pixels, "mean": lambda images: pixels(images).mean(1, keepdims=True)}
    images = batches(3, 3)  # a generator: there is no second pass
    features, labels = collect(lambda x: {k: f(x) for k, f in encoders.items()}, images, 6)
    assert {name: array.shape for name, array in features.items()} == {
        "pixels": (6, 48),
        "mean": (6, 1),
    }
    np.testing.assert_allclose(features["mean"][:, 0] * 255, labels, rtol=1e-6)


def test_collect_returns_fewer_rows_where_images_are_left_out():
    features, labels = collect(pixels, batches(3, 1), num_examples=9)
    assert len(features) == len(labels) == 4


def test_collect_of_nothing_raises():
    with pytest.raises(DataError, match="no image"):
        collect(pixels, batches(), num_examples=9)


def test_collect_holds_one_copy_of_the_features():
    """Defect: a list of batches and their concatenation were held together."""
    size, width, count = 20, 5000, 100

    def embed(images):
        return np.zeros((len(images), width), np.float32)

    tracemalloc.start()
    try:
        features, _ = collect(embed, batches(*[size] * count), num_examples=size * count)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * features.nbytes
