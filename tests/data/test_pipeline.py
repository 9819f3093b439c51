"""Sources and the pipeline: which examples, in which order, and which pixels of them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol_jax.augment.crops import DRAWS
from byol_jax.byol import Batch
from byol_jax.data import (
    Crop,
    ShardOptions,
    eval_batches,
    from_arrays,
    open_source,
    steps_per_epoch,
    train_batches,
)
from byol_jax.data._tensorflow import tf
from byol_jax.data.crop import center_crop, random_boxes, random_views, resize, to_bytes
from byol_jax.data.small import LARGEST, matrices, number, small_images
from byol_jax.data.tfds import RecordSource, open_records
from byol_jax.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared"


def same(left, right):
    """Whether two sequences of batches are equal, bit by bit."""
    return all(
        all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(left, right, strict=True)
    )


def numbered(n, size=8, channels=3):
    """A source of n images; image i and its label both say i (in base 256)."""
    images = np.zeros((n, size, size, channels), np.uint8)
    images[:] = (np.arange(n) % 256)[:, None, None, None]
    return from_arrays(images, np.arange(n))


def photos(n, seed=0, size=12):
    """A source of n images of noise, no two alike."""
    rng = np.random.default_rng(seed)
    return from_arrays(rng.integers(0, 256, (n, size, size, 3), np.uint8), np.arange(n))


def train(source, num_steps, batch_size=8, image_size=6, seed=1, **kwargs):
    return list(
        train_batches(
            source,
            batch_size=batch_size,
            image_size=image_size,
            seed=seed,
            num_steps=num_steps,
            **kwargs,
        )
    )


# The order of training examples.


def test_batch_is_as_documented():
    (batch,) = train(photos(10), 1)
    assert batch.examples.shape == (8, 2, 6, 6, 3) and batch.examples.dtype == np.uint8
    assert batch.labels.shape == (8,) and batch.labels.dtype == np.int32
    assert batch.positions.dtype == np.int32
    np.testing.assert_array_equal(batch.positions, np.arange(8))


def test_an_epoch_shows_no_example_twice_and_the_next_another_order():
    batches = train(numbered(30), 6)
    assert steps_per_epoch(numbered(30), 8) == 3
    first, second = (np.concatenate([b.labels for b in batches[i : i + 3]]) for i in (0, 3))
    for epoch in first, second:
        assert len(set(epoch)) == 24 and set(epoch) <= set(range(30))
    assert not np.array_equal(first, second)
    assert set(first) != set(second)  # those left over are not always the same


def test_labels_and_views_belong_together():
    for batch in train(numbered(30), 3):
        np.testing.assert_array_equal(batch.examples[:, 0, 0, 0, 0], batch.labels)
        np.testing.assert_array_equal(batch.examples[:, 1, 0, 0, 0], batch.labels)


# Small images are cut a whole batch at a time, larger ones each on its own.
sizes = pytest.mark.parametrize("size", [12, LARGEST + 1])


@sizes
def test_runs_are_equal_and_can_be_resumed_at_any_step(size):
    source = photos(20, size=size)
    whole = train(source, 7)
    assert same(whole, train(source, 7))
    for start in 1, 2, 3, 6, 7:
        assert same(whole[start:], train(source, 7, start_step=start))


def test_seeds_differ_and_epochs_differ_and_views_differ():
    source = photos(8)
    first, second = train(source, 2)
    (other,) = train(source, 1, seed=2)

    def sorted_views(batch):
        return batch.examples[np.argsort(batch.labels)]

    assert not np.array_equal(sorted_views(first), sorted_views(second))
    assert not np.array_equal(sorted_views(first), sorted_views(other))
    assert not np.array_equal(first.labels, other.labels)
    assert not np.array_equal(first.examples[:, 0], first.examples[:, 1])


def test_no_crop_is_drawn_twice():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    batches = train(from_arrays(np.stack([image] * 8)), 3)
    views = np.concatenate([batch.examples.reshape(16, -1) for batch in batches])
    assert len(np.unique(views, axis=0)) == 48


def shares(batch_size, count, pieces=2):
    """Shares of `count` hosts: of each of some pieces of the batch, an equal part."""
    rows = np.arange(batch_size).reshape(pieces, count, -1)
    return [ShardOptions(rows[:, i].ravel(), i, count) for i in range(count)]


def joined(parts):
    """The global batch, from those of all hosts."""
    order = np.argsort(np.concatenate([part.positions for part in parts]))
    return Batch(
        np.concatenate([part.examples for part in parts])[order],
        np.concatenate([part.labels for part in parts])[order],
        np.concatenate([part.positions for part in parts])[order],
    )


@sizes
@pytest.mark.parametrize("count", [2, 4])
def test_hosts_share_the_batch_of_one_host(count, size):
    source = photos(20, size=size)
    whole = train(source, 5)
    hosts = [train(source, 5, share=share) for share in shares(8, count)]
    for batch, *parts in zip(whole, *hosts, strict=True):
        assert {part.examples.shape[0] for part in parts} == {8 // count}
        assert same([batch], [joined(parts)])
    share = shares(8, count)[1]
    assert same(hosts[1][3:], train(source, 5, start_step=3, share=share))


def test_no_labels():
    source = from_arrays(np.zeros((9, 4, 4, 1), np.uint8))
    assert source.num_classes is None and source.class_names is None
    (batch,) = train(source, 1)
    assert batch.labels is None and batch.examples.shape == (8, 2, 6, 6, 1)
    assert [labels for _, labels in eval_batches(source, batch_size=5, image_size=4)] == [None] * 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 11}, "has 10 examples, fewer than a batch of 11"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        (
            {"share": ShardOptions(np.arange(2), 0, 3)},
            "a batch of 8 cannot be shared equally by 3 hosts",
        ),
        ({"share": ShardOptions(np.arange(4)[::-1], 0, 2)}, "cannot be shared equally by 2 hosts"),
        ({"image_size": 0}, "image size must be at least 1"),
        ({"crop": Crop(area=(0.5, 1.5))}, "area of a crop must lie within"),
        ({"crop": Crop(ratio=(2.0, 1.0))}, "ratio of a crop must be above 0"),
        ({"crop": Crop(flip=1.5)}, "probability of a flip"),
    ],
)
def test_bad_training_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        train(numbered(10), 1, **kwargs)


# Evaluation.


def test_evaluation_sees_every_example_once_in_order():
    batches = list(eval_batches(numbered(30), batch_size=8, image_size=8))
    assert [len(images) for images, _ in batches] == [8, 8, 8, 6]
    labels = np.concatenate([labels for _, labels in batches])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.arange(30))


def test_evaluation_limit_takes_some_examples_always_the_same():
    def seen(limit):
        batches = eval_batches(numbered(30), batch_size=8, image_size=8, limit=limit)
        return np.concatenate([labels for _, labels in batches])

    assert len(np.unique(seen(10))) == 10
    np.testing.assert_array_equal(seen(10), seen(10))
    np.testing.assert_array_equal(seen(99), np.arange(30))


def test_evaluation_limit_leaves_no_class_out():
    """Labels in turns (the embedded dataset) would lose classes to even spacing."""
    images = np.zeros((100, 8, 8, 1), np.uint8)
    source = from_arrays(images, np.arange(100) % 5)
    batches = eval_batches(source, batch_size=50, image_size=8, limit=50)
    assert set(np.concatenate([labels for _, labels in batches])) == set(range(5))


def test_evaluation_of_the_whole_image_leaves_it_untouched():
    source = photos(5)
    ((images, _),) = eval_batches(source, batch_size=5, image_size=12, crop_fraction=1.0)
    np.testing.assert_array_equal(images, [source.decode(i)[0] for i in range(5)])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"image_size": 0}, "image size must be at least 1"),
        ({"crop_fraction": 0.0}, "crop fraction must lie within"),
        ({"limit": 0}, "limit of examples must be at least 1"),
    ],
)
def test_bad_evaluation_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        eval_batches(numbered(10), **{"batch_size": 2, "image_size": 4, **kwargs})


# Crops.


def boxes(n, height, width, crop=Crop(), seed=0):  # noqa: B008 (a constant)
    uniform = tf.random.stateless_uniform((n, DRAWS - 1), [seed, 0])
    top, left, h, w = random_boxes(uniform, tf.constant([height, width, 3]), crop).numpy().T
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    return top, left, h, w


def plain_boxes(n, height, width, crop, seed=0):
    """The definition, one draw at a time."""
    rng = np.random.default_rng(seed)
    result = []
    while len(result) < n:
        area = rng.uniform(*crop.area) * height * width
        ratio = np.exp(rng.uniform(*np.log(crop.ratio)))
        h, w = np.round(np.sqrt(area / ratio)), np.round(np.sqrt(area * ratio))
        if 1 <= h <= height and 1 <= w <= width:
            result.append((h, w))
    return np.array(result).T


@pytest.mark.parametrize(("height", "width"), [(300, 300), (240, 400)])
def test_boxes_are_distributed_as_defined(height, width):
    n, crop = 20_000, Crop()
    top, left, h, w = boxes(n, height, width)
    expected_h, expected_w = plain_boxes(n, height, width, crop)
    area, expected_area = h * w / (height * width), expected_h * expected_w / (height * width)
    assert crop.area[0] * 0.98 < area.min() and area.max() <= 1
    for got, expected in [
        (area, expected_area),
        (np.log(w / h), np.log(expected_w / expected_h)),
    ]:
        # Standard errors of the quantiles are about .003, in units of the range.
        quantiles = np.linspace(0.05, 0.95, 10)
        difference = np.quantile(got, quantiles) - np.quantile(expected, quantiles)
        assert np.abs(difference).max() < 0.02 * np.ptp(expected)
    # Wherever there is room, the place is uniform.
    for start, room in [(top, height - h), (left, width - w)]:
        place = (start[room > 20] + 0.5) / (room[room > 20] + 1)
        np.testing.assert_allclose(np.quantile(place, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)


def test_small_boxes_have_uniform_area_and_log_ratio():
    # No box of this kind is ever rejected, so the marginals are exactly uniform.
    _, _, h, w = boxes(20_000, 1000, 1000, Crop(area=(0.1, 0.3), ratio=(0.5, 2.0)))
    area, log_ratio = h * w / 1e6, np.log2(w / h)
    quantiles = np.linspace(0, 1, 11)
    np.testing.assert_allclose(np.quantile(area, quantiles), 0.1 + 0.2 * quantiles, atol=0.004)
    np.testing.assert_allclose(np.quantile(log_ratio, quantiles), 2 * quantiles - 1, atol=0.04)
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) < 0.03


def test_where_no_box_fits_the_largest_central_one_stands_in():
    wide = Crop(area=(1.0, 1.0), ratio=(0.5, 0.5))
    top, left, h, w = boxes(5, 40, 100, wide)
    assert set(zip(top, left, h, w, strict=True)) == {(0, 40, 40, 20)}
    top, left, h, w = boxes(5, 100, 10, wide)
    assert set(zip(top, left, h, w, strict=True)) == {(40, 0, 20, 10)}


def test_a_tiny_image_still_has_a_crop():
    for view in random_views(
        tf.fill((1, 1, 3), tf.constant(9, tf.uint8)), 4, Crop(), tf.constant([0, 1], tf.int64)
    ):
        np.testing.assert_array_equal(view, np.full((4, 4, 3), 9))
    boxes(100, 1, 50)


def test_half_of_the_views_are_mirrored():
    images = np.zeros((256, 2, 8, 1), np.uint8)
    images[:, :, 4:] = 255
    (batch,) = train(from_arrays(images), 1, batch_size=256, crop=Crop((1.0, 1.0), (4.0, 4.0)))
    mirrored = batch.examples[:, :, 0, 0, 0].T > 128
    assert 0.4 < mirrored.mean() < 0.6
    assert abs(np.corrcoef(mirrored[0], mirrored[1])[0, 1]) < 0.2  # the two views independently


@pytest.mark.parametrize(("flip", "width_axis"), [(0.0, 1), (1.0, -1)])
def test_a_crop_of_everything_is_the_image(flip, width_axis):
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    crop = Crop((1.0, 1.0), (1.0, 1.0), flip)
    for view in random_views(tf.constant(image), 9, crop, tf.constant([0, 0], tf.int64)):
        np.testing.assert_array_equal(view, image[:, ::width_axis])


def bicubic(image, size):
    """Keys' cubic convolution (a = -1/2), pixel centres at halves, edges renormalised."""

    def weights(length):
        at = (np.arange(size) + 0.5) * length / size - 0.5
        x = np.abs(at[:, None] - np.arange(length))
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        kernel = np.where(x <= 1, near, np.where(x < 2, far, 0))
        return kernel / kernel.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0]), weights(image.shape[1])
    return np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(float))


@pytest.mark.parametrize("size", [7, 11, 24])
def test_resizing_is_bicubic_and_clips_what_overshoots(size):
    # Black and white only: cubic interpolation overshoots at every edge.
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (14, 10, 3))
    expected = bicubic(image[2:12], size)
    assert expected.min() < -5 and expected.max() > 260
    view = center_crop(tf.constant(image), size, 1.0).numpy()
    assert view.dtype == np.uint8
    np.testing.assert_allclose(view, np.clip(expected, 0, 255), atol=1.0)


def test_a_large_image_is_resized_as_a_small_one(monkeypatch):
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    small = center_crop(image, 8, 1.0)
    monkeypatch.setattr("byol_jax.data.crop.WORTH_FLOATS", 0)
    np.testing.assert_array_equal(center_crop(image, 8, 1.0), small)


@pytest.mark.parametrize(("shape", "top", "left"), [((20, 12), 7, 3), ((12, 20), 3, 7)])
def test_the_central_crop_is_central(shape, top, left):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    view = center_crop(tf.constant(image), 6, 0.5)
    np.testing.assert_array_equal(view, image[top : top + 6, left : left + 6])


def test_pixels_are_rounded_half_to_even_and_clipped():
    values = np.concatenate([np.arange(-20, 300, 0.25), [0.49999997, 254.50002, -1e9, 1e9]])
    values = values.astype(np.float32)
    np.testing.assert_array_equal(to_bytes(tf.constant(values)), np.clip(np.rint(values), 0, 255))


# Small images, a batch at a time.


@pytest.mark.parametrize("size", [5, 9])
def test_each_stretch_has_its_matrix(size):
    seen = set()
    for length in range(1, 8):
        expected = resize(tf.eye(length)[..., None], size, length)[..., 0]
        for start in range(8 - length):
            place = int(number(start, length, 7))
            matrix = matrices(7, size)[place]
            np.testing.assert_array_equal(matrix[:, start : start + length], expected)
            assert np.count_nonzero(matrix) == np.count_nonzero(expected)
            np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
            seen.add(place)
    assert seen == set(range(len(matrices(7, size))))


@pytest.mark.parametrize(
    ("shape", "size", "flip"),
    [((32, 32, 3), 32, 0.5), ((20, 37, 1), 24, 1.0), ((9, 8, 3), 31, 0.0)],
)
def test_small_views_are_boxes_resized_and_mirrored(shape, size, flip):
    rng = np.random.default_rng(0)
    # Black and white only: cubic interpolation overshoots at every edge.
    source = from_arrays(rng.choice(np.array([0, 255], np.uint8), (10, *shape)), np.arange(10) * 3)
    crop, uniform = Crop(flip=flip), rng.random((2, 30, DRAWS), np.float32)
    places = rng.integers(0, 10, 30)
    small = small_images(source, size)
    views = small.random_views(tf.constant(places), crop, tf.constant(uniform)).numpy()
    views = views.swapaxes(0, 1)
    assert views.shape == (2, 30, size, size, shape[-1]) and views.dtype == np.uint8
    differing = 0
    for view, numbers in zip(views, uniform, strict=True):
        boxes = random_boxes(tf.constant(numbers[:, :-1]), tf.constant(shape), crop).numpy()
        for got, place, box, last in zip(view, places, boxes, numbers[:, -1], strict=True):
            top, left, height, width = box
            part = source.images[place, top : top + height, left : left + width]
            want = to_bytes(resize(tf.constant(part), size, size)).numpy()
            want = want[:, ::-1] if last < flip else want
            difference = np.abs(got.astype(int) - want)
            assert difference.max() <= 1  # the order of sums
            differing += np.count_nonzero(difference)
    assert differing < 1e-3 * views.size
    np.testing.assert_array_equal(small.labels(tf.constant(places)), places * 3)


def test_where_the_batch_is_cut_at_once():
    images = np.zeros((1, LARGEST, LARGEST, 3), np.uint8)
    assert small_images(from_arrays(images), LARGEST) is not None
    assert small_images(from_arrays(images), LARGEST + 1) is None
    assert small_images(from_arrays(np.zeros((1, 8, LARGEST + 1, 3), np.uint8)), 8) is None


# Arrays and names.


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), None, "images must be uint8 from 0 to 255, not float64"),
        (np.zeros((2, 4, 4), np.uint8), None, r"shape \(N, H, W, C\)"),
        (np.zeros((2, 4, 4, 2), np.uint8), None, "C 1 or 3"),
        (np.zeros((0, 4, 4, 3), np.uint8), None, "nothing empty"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], r"labels must have shape \(2,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.0, 1.0], "labels must be integers from 0 up"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, -1], "labels must be integers from 0 up"),
    ],
)
def test_bad_arrays(images, labels, message):
    with pytest.raises(UserError, match=message):
        from_arrays(images, labels)


def test_class_names_of_arrays():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    source = from_arrays(images, [0, 2])
    assert source.num_classes == 3 and source.class_names == ("0", "1", "2")
    assert from_arrays(images, [0, 1], class_names=("cat", "dog")).class_names == ("cat", "dog")
    with pytest.raises(UserError, match="label 2 has no name"):
        from_arrays(images, [0, 2], class_names=("cat", "dog"))
    with pytest.raises(UserError, match="class names mean nothing without labels"):
        from_arrays(images, class_names=("cat", "dog"))


@pytest.mark.parametrize("spec", ["cifar10", "tfds:", "folder:", "embedded:x", ""])
def test_unknown_source(spec):
    with pytest.raises(UserError, match="use tfds:NAME, folder:PATH, npz:PATH or embedded"):
        open_source(spec, "train")


def test_embedded_source():
    source = open_source("embedded", "test", channels=1)
    assert (source.name, source.num_examples, source.channels) == ("embedded/test", 2000, 1)
    assert source.num_classes == 10 and "bricks" in source.class_names
    with pytest.raises(UserError, match=r"set --config\.data\.channels=1"):
        open_source("embedded", "test", channels=3)
    with pytest.raises(UserError, match="have 1 or 3 channels, not 2"):
        open_source("embedded", "test", channels=2)


# Folders.


def put(path, value=0, size=(10, 8), mode="RGB"):
    """Writes an image of one gray value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(path)


def test_folder_of_classes(tmp_path):
    put(tmp_path / "train/dog/1.JPG", 100)
    put(tmp_path / "train/dog/deep/er/2.png", 110)
    put(tmp_path / "train/cat/3.jpeg", 50, mode="L")
    put(tmp_path / "train/cat/.hidden.png")
    put(tmp_path / "test/cat/4.png", mode="RGBA")
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.name == f"folder:{tmp_path}/train"
    assert (source.num_examples, source.class_names) == (3, ("cat", "dog"))
    ((images, labels),) = eval_batches(source, batch_size=9, image_size=4)
    np.testing.assert_array_equal(labels, [0, 1, 1])
    np.testing.assert_allclose(images.mean((1, 2, 3)), [50, 100, 110], atol=2)
    assert open_source(f"folder:{tmp_path}", "test").num_classes is None  # a single class


def test_folders_that_are_splits_are_not_taken_for_classes(tmp_path):
    for split in ("Training", "validation"):
        put(tmp_path / split / "a.png")
    with pytest.raises(UserError, match=r"holds the splits Training, validation, not classes"):
        open_source(f"folder:{tmp_path}", "train")


def test_a_split_beside_classes_is_refused(tmp_path):
    for folder in ("bus", "train"):
        put(tmp_path / folder / "a.png")
    with pytest.raises(UserError, match=r"train looks like a split and the 'bus' beside it"):
        open_source(f"folder:{tmp_path}", "train")


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_files_become_the_channels_asked_for(tmp_path, channels):
    for name, mode in [("a.png", "L"), ("b.jpg", "L"), ("c.jpg", "RGB"), ("d.png", "RGBA")]:
        put(tmp_path / name, 60, mode=mode)
    source = open_source(f"folder:{tmp_path}", "train", channels=channels)
    (batch,) = train(source, 1, batch_size=4)
    assert batch.labels is None and batch.examples.shape == (4, 2, 6, 6, channels)
    np.testing.assert_allclose(batch.examples.astype(float), 60, atol=2)


def test_images_at_the_top_mean_no_labels(tmp_path):
    put(tmp_path / "1.png")
    put(tmp_path / "cat/2.png")
    put(tmp_path / "dog/3.png")
    source = open_source(f"folder:{tmp_path}", "train")
    assert (source.num_examples, source.num_classes) == (3, None)


def test_folder_links_in_a_circle(tmp_path):
    put(tmp_path / "cat/1.png")
    put(tmp_path / "dog/2.png")
    (tmp_path / "cat/up").symlink_to(tmp_path)
    (tmp_path / "dog/self").symlink_to(tmp_path / "dog")
    (tmp_path / "dog/lost.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.class_names == ("cat", "dog")
    assert source.names() == ["cat/1.png", "dog/2.png"]


def test_the_listing_of_a_folder_follows_names_and_labels(tmp_path):
    for name in ("a/1.png", "a/2.gif", "b/3.webp", "b/4.bmp"):
        put(tmp_path / "one" / name)

    def fingerprint(root="one"):
        return open_source(f"folder:{tmp_path / root}", "train").fingerprint()

    first = fingerprint()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert fingerprint("two") == first and re.fullmatch("[0-9a-f]{64}", first)
    (tmp_path / "one/b/3.webp").rename(tmp_path / "one/b/5.webp")
    renamed = fingerprint()
    shutil.rmtree(tmp_path / "one/b")
    (tmp_path / "two/a").rename(tmp_path / "two/c")
    assert len({first, renamed, fingerprint(), fingerprint("two")}) == 4
    assert from_arrays(np.zeros((1, 4, 4, 3), np.uint8)).fingerprint() is None


def test_bad_folders(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="holds no images"):
        open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(UserError, match="has no split 'val': put its images into"):
        open_source(f"folder:{tmp_path}", "val")
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        open_source(f"folder:{tmp_path}/nowhere", "train")
    with pytest.raises(UserError, match="is in a bucket, where folders are not read"):
        open_source("folder:gs://bucket/photos", "train")
    with pytest.raises(UserError, match="file is not a folder"):
        open_source(f"folder:{tmp_path}/file", "train")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    for i in range(12):
        put(tmp_path / f"{i:02}.jpg")
    (tmp_path / "07.jpg").write_bytes((tmp_path / "07.jpg").read_bytes()[:100])
    source = open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(UserError, match=r"07\.jpg cannot be decoded"):
        train(source, 6, batch_size=4)
    batches = eval_batches(source, batch_size=4, image_size=4)
    next(batches)
    with pytest.raises(UserError, match=r"07\.jpg cannot be decoded"):
        next(batches)


def test_a_file_that_disappears_is_named(tmp_path):
    put(tmp_path / "1.png")
    put(tmp_path / "2.png")
    source = open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png cannot be decoded"):
        train(source, 1, batch_size=2)


@pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="no photos beside the checkout")
def test_photographs():
    source = open_source(f"folder:{SHARED / 'photos'}", "train")
    assert source.num_classes is None
    ((images, _),) = eval_batches(source, batch_size=8, image_size=32, limit=8)
    assert images.shape == (8, 32, 32, 3) and images.std() > 30


# TFDS.

needs_cifar10 = pytest.mark.skipif(
    not (SHARED / "tfds/cifar10").is_dir(), reason="no prepared CIFAR-10 beside the checkout"
)


def cifar10(split, memory_limit=2**30, channels=3):
    return open_records("cifar10", split, str(SHARED / "tfds"), channels, memory_limit)


@needs_cifar10
def test_tfds_in_memory_and_streamed_are_the_same_examples():
    held, streamed = cifar10("test[:1%]"), cifar10("test[:1%]", memory_limit=1000)
    assert isinstance(streamed, RecordSource) and not isinstance(held, RecordSource)
    for source in held, streamed:
        assert (source.name, source.num_examples) == ("tfds:cifar10/test[:1%]", 100)
        assert (source.num_classes, len(source.class_names), source.channels) == (10, 10, 3)
    batches = (eval_batches(source, batch_size=32, image_size=32) for source in (held, streamed))
    assert same(*map(list, batches))
    assert (
        sum(
            len(images)
            for images, _ in eval_batches(streamed, batch_size=32, image_size=32, limit=40)
        )
        == 40
    )


@needs_cifar10
def test_streamed_training_repeats_resumes_and_is_shared(monkeypatch):
    # Smaller than an epoch, so that the buffer's own randomness is at work.
    monkeypatch.setattr("byol_jax.data.tfds.SHUFFLE_BUFFER", 40)
    source = cifar10("test[:100]", memory_limit=0)
    whole = train(source, 14, batch_size=16)
    epochs = [np.concatenate([b.examples[:, 0] for b in whole[i : i + 6]]) for i in (0, 6)]
    assert not np.array_equal(*epochs)
    assert not same(whole[:6], train(source, 6, batch_size=16, seed=2))
    tf.random.set_seed(321)  # must not matter
    assert same(whole, train(source, 14, batch_size=16))
    for start in 5, 6, 9:
        assert same(whole[start:], train(source, 14, batch_size=16, start_step=start))


@needs_cifar10
@pytest.mark.parametrize("count", [2, 3])
def test_streamed_hosts_read_other_records_each(monkeypatch, count):
    monkeypatch.setattr("byol_jax.data.tfds.SHUFFLE_BUFFER", 10)
    # 46 records of one file and 51 of another: the parts begin and end within files.
    source = cifar10("train[:46]+test[:51]", memory_limit=0)
    assert source.order_depends_on_hosts and not photos(2).order_depends_on_hosts
    hosts = shares(12, count)
    parts = [train(source, 16, batch_size=12, share=share) for share in hosts]
    for first in 0, 8:
        seen = [records(source, first // 8, share) for share in hosts]
        assert sum(map(len, seen)) == len(set.union(*seen)) == 97
    for step in range(16):
        batch = joined([part[step] for part in parts])
        np.testing.assert_array_equal(batch.positions, np.arange(12))
    assert same(parts[1][11:], train(source, 16, batch_size=12, share=hosts[1], start_step=11))


def records(source, epoch, share):
    """What a host sees in an epoch."""
    part = source.shard(share.index, share.count)
    order = tf.constant([1, -1 - epoch], tf.int64)
    return {bytes(record.numpy()) for _, record in part.records(order)}


@needs_cifar10
def test_streamed_epochs_show_every_example_once(monkeypatch):
    monkeypatch.setattr("byol_jax.data.tfds.SHUFFLE_BUFFER", 40)
    source = cifar10("train[:50]+test[:46]", memory_limit=0)
    everything = {bytes(record.numpy()) for _, record in source.records()}
    assert len(everything) == 96
    for epoch in range(2):
        raw = source.raw(tf.range(96, dtype=tf.int64), tf.constant([5, epoch], tf.int64))
        assert {bytes(record.numpy()) for _, record in raw} == everything


@needs_cifar10
def test_a_streamed_record_is_found_at_its_place():
    source = cifar10("train[3:50]+test[7:46]", memory_limit=0)
    by_place = {int(place): bytes(record.numpy()) for place, record in source.records()}
    assert set(by_place) == set(range(86))
    places = [60, 0, 46, 47, 85, 0]
    found = [
        (int(place), bytes(record.numpy()))
        for place, record in source.get(tf.constant(places, tf.int64))
    ]
    assert found == [(place, by_place[place]) for place in places]
    assert re.fullmatch(r"record 3 of .*cifar10-train.*", source.describe(0))
    assert re.fullmatch(r"record 8 of .*cifar10-test.*", source.describe(48))


@needs_cifar10
def test_tfds_mistakes(tmp_path):
    data_dir = str(SHARED / "tfds")
    with pytest.raises(UserError, match="no split 'val'; choose one of train, test"):
        open_source("tfds:cifar10", "val", data_dir=data_dir)
    with pytest.raises(UserError, match="no split 'train"):
        open_source("tfds:cifar10", "train[:1", data_dir=data_dir)
    with pytest.raises(UserError, match="holds no images"):
        open_source("tfds:cifar10", "train[:0]", data_dir=data_dir)
    with pytest.raises(UserError, match=r"set --config\.data\.channels=3"):
        open_source("tfds:cifar10", "test", data_dir=data_dir, channels=1)
    with pytest.raises(UserError, match=r"run `tfds build cifar10:9\.9\.9`"):
        open_source("tfds:cifar10:9.9.9", "train", data_dir=data_dir)


@pytest.mark.parametrize("name", ["mnist", "no_such_dataset", "imagenette/160px-v2"])
def test_tfds_that_is_not_prepared(tmp_path, name):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(UserError, match=f"not prepared in {tmp_path}; run `tfds build {name}`"):
        open_source(f"tfds:{name}", "train", data_dir=str(tmp_path))
