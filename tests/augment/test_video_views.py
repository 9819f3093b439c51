"""Views of video: every frame is changed as an image is, with the key of its clip."""

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.augment import crops, image, video

KEY = jax.random.key(3)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
VIEWS = (
    image.View(jitter_prob=1.0, blur_prob=0.0),
    image.View(jitter_prob=0.0, mask_share=0.3, mask_patch_size=2),
)
POLICY = video.Policy(image.Policy(*VIEWS, MEAN, STD), crops.Crop(area=(0.3, 0.9)), size=8)
VIEWS_OF = jax.jit(POLICY)
CLIPS = {
    f"clip{i}": np.random.default_rng(i).integers(0, 256, (3, 12, 10, 3), np.uint8) for i in (1, 2)
}


def test_every_frame_of_a_view_is_an_image_with_that_key():
    views, of_image = VIEWS_OF(KEY, CLIPS), jax.jit(POLICY.image)
    crop = jax.jit(lambda frame, key: crops.random_views(frame, 8, POLICY.crop, key, count=1)[0])
    for frame in range(3):
        pair = []
        for i, clip in enumerate(CLIPS.values()):
            key = jax.random.fold_in(jax.random.fold_in(KEY, video.CROPS), i)
            pair.append(crop(clip[frame], key))
        for view, want in zip(views, of_image(KEY, jnp.stack(pair)), strict=True):
            assert view.shape == (3, 8, 8, 3) and view.dtype == np.float32
            np.testing.assert_allclose(view[frame], want, atol=2e-6)


def test_a_third_clip_is_changed_as_view_1_is_with_a_key_of_its_own():
    third = np.random.default_rng(3).integers(0, 256, (3, 12, 10, 3), np.uint8)
    views = jax.jit(POLICY)(KEY, {**CLIPS, "clip3": third})
    for view, want in zip(views[:2], VIEWS_OF(KEY, CLIPS), strict=True):
        np.testing.assert_array_equal(view, want)
    key = jax.random.fold_in(jax.random.fold_in(KEY, video.CROPS), 2)
    crop = crops.random_views(third[1], 8, POLICY.crop, key, count=1)[0]
    frames = {"global": jnp.zeros((2, 8, 8, 3), jnp.uint8), "local": crop[None]}
    want = jax.jit(POLICY.image)(KEY, frames)[2]
    np.testing.assert_allclose(views[2][1], want, atol=2e-6)


def test_equal_frames_stay_equal_and_views_differ():
    still = np.repeat(CLIPS["clip1"][:1], 3, axis=0)
    first, second = VIEWS_OF(KEY, {"clip1": still, "clip2": still})
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(second[0], second[2])
    assert np.abs(first - second).max() > 0.1


def test_the_encoder_sees_the_central_square():
    clips = np.stack([*CLIPS.values()])
    want = (clips[:, :, 1:11] / 255 - np.array(MEAN)) / np.array(STD)
    ten = video.Policy(POLICY.image, POLICY.crop, size=10)
    seen = jax.jit(ten.preprocess)
    np.testing.assert_allclose(seen({"clip1": clips}), want, rtol=1e-5, atol=1e-6)
    # Of that size already, nothing changes; otherwise it is resized as images are.
    np.testing.assert_allclose(ten.preprocess(clips[:, :, 1:11]), want, rtol=1e-5, atol=1e-6)
    got = jax.jit(lambda x: video.central(x, 5))(clips)
    box = jnp.array([1.0, 0.0, 10.0, 10.0])
    resize = jax.jit(lambda x: crops.resized_crop(x, box, jnp.array(False), 5))
    want = resize(clips[1, 2])
    np.testing.assert_array_equal(got[1, 2], want)
