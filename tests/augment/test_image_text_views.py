"""Views of an image and a text, against NumPy and the functions for each alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.augment import crops, image, image_text, text

SIZE = 6
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
OFF = image.View(jitter_prob=0, gray_prob=0, blur_prob=0)
WHOLE = crops.Crop(area=(1, 1), ratio=(1, 1), flip=0)
VOCABULARY = ("[PAD]", "[UNK]", "cat", "dog", "##s")
POLICY = image_text.Policy(OFF, text.View(), WHOLE, SIZE, MEAN, STD, VOCABULARY)
EXAMPLE = {
    "image": np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3)).astype(np.uint8),
    "text": np.array([2, 4, 3, 2, 0, 0], np.int32),
}


def normalized(pixels):
    return (pixels / 255 - np.array(MEAN)) / np.array(STD)


def test_with_all_off_views_are_the_pair():
    view1, view2 = jax.jit(POLICY)(jax.random.key(0), EXAMPLE)
    assert [*view1] == ["image"] and [*view2] == ["text"]
    assert view1["image"].dtype == jnp.float32
    np.testing.assert_allclose(view1["image"], normalized(EXAMPLE["image"]), atol=1e-5)
    np.testing.assert_array_equal(view2["text"], EXAMPLE["text"])
    flipped = dataclasses.replace(POLICY, crop=WHOLE._replace(flip=1.0))
    view1, _ = jax.jit(flipped)(jax.random.key(0), EXAMPLE)
    np.testing.assert_allclose(view1["image"], normalized(EXAMPLE["image"][:, ::-1]), atol=1e-5)


def test_each_view_has_the_operations_of_its_kind():
    key, colour, words = jax.random.key(3), image.View(blur_prob=0), text.View(delete_prob=0.5)
    policy = jax.jit(dataclasses.replace(POLICY, view1=colour, view2=words))
    view1, view2 = policy(key, EXAMPLE)
    planes = np.moveaxis(EXAMPLE["image"].astype(np.float32) / 255, -1, 0)
    view = jax.jit(image.view, static_argnums=(0, 3))
    want = np.moveaxis(view(colour, jax.random.fold_in(key, 0), planes, MEAN), 0, -1)
    np.testing.assert_allclose(view1["image"], normalized(255 * want), atol=1e-5)
    assert np.abs(view1["image"] - normalized(EXAMPLE["image"])).max() > 0.05
    is_piece = jnp.array([False, False, False, False, True])
    augment = jax.jit(text.augment, static_argnums=0)
    want = augment(words, jax.random.fold_in(key, 1), EXAMPLE["text"], is_piece)
    np.testing.assert_array_equal(view2["text"], want)
    assert view2["text"].tolist() != EXAMPLE["text"].tolist()
    again = policy(key, EXAMPLE)
    np.testing.assert_array_equal(again[0]["image"], view1["image"])
    other = policy(jax.random.key(4), EXAMPLE)
    assert (other[0]["image"] != view1["image"]).any()


def test_in_evaluation_it_is_the_central_square():
    wide = np.random.default_rng(1).integers(256, size=(2, SIZE, 10, 3)).astype(np.uint8)
    tokens = np.array([[1, 2], [3, 0]], np.int32)
    found = jax.jit(POLICY.preprocess)({"image": wide, "text": tokens})
    np.testing.assert_allclose(found["image"], normalized(wide[:, :, 2:8]), atol=1e-5)
    np.testing.assert_array_equal(found["text"], tokens)
    assert [*POLICY.preprocess({"text": tokens})] == ["text"]
