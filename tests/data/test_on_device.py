"""A data set on the devices: examples, distribution of crops, and no transfers."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from tiny import tiny_config

from byol_jax import byol, data, models, optim, parallel
from byol_jax.augment import image as image_augment
from byol_jax.augment.crops import LocalViews
from byol_jax.backend.compile_cache import Compilations
from byol_jax.byol import Batch
from byol_jax.data import on_device
from byol_jax.data._tensorflow import tf
from byol_jax.data.crop import center_crop
from byol_jax.errors import ConfigError
from byol_jax.runs import config as config_lib
from byol_jax.runs import inputs

N, SIZE, BATCH = 50, 8, 12
STEPS = N // BATCH  # of an epoch
COMPLETE = data.Crop(area=(1, 1), ratio=(1, 1), flip=0)


def source(channels=3):
    """Images of noise, no two alike."""
    images = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, channels), np.uint8)
    return data.from_arrays(images, np.arange(N) % 7)


def joined(batch):
    """A batch on the devices as rows of the global one."""
    views, labels, positions = (np.asarray(x) for x in batch)
    order = np.argsort(positions.ravel())
    views = views.reshape(-1, *views.shape[2:])
    return views[order], labels.ravel()[order], positions.ravel()[order]


def batches(start=0, stop=STEPS, crop=COMPLETE, seed=0, accum_steps=1, **other):
    made = on_device.train_batches(
        source(),
        batch_size=BATCH,
        image_size=SIZE,
        seed=seed,
        num_steps=stop,
        start_step=start,
        crop=crop,
        accum_steps=accum_steps,
        **other,
    )
    return [joined(batch) for batch in made]


def test_an_epoch_has_no_example_twice_and_the_next_has_another_order():
    images, labels = source().images, source().labels
    orders = []
    for epoch in range(2):
        seen = []
        for pairs, batch_labels, positions in batches(epoch * STEPS, (epoch + 1) * STEPS):
            np.testing.assert_array_equal(positions, np.arange(BATCH))
            for first, second, label in zip(pairs[:, 0], pairs[:, 1], batch_labels, strict=True):
                np.testing.assert_array_equal(first, second)
                (index,) = np.flatnonzero((images == first).all((1, 2, 3)))
                assert label == labels[index]
                seen.append(index)
        assert len(set(seen)) == len(seen) == STEPS * BATCH
        orders.append(seen)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_batches_depend_on_the_step_alone():
    crop = data.Crop(area=(0.2, 1.0))
    complete = batches(0, 2 * STEPS + 1, crop)
    for start in (1, STEPS, STEPS + 1):
        for got, want in zip(batches(start, 2 * STEPS + 1, crop), complete[start:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, got, want)
    for got, want in zip(batches(0, 2, crop, accum_steps=3), complete, strict=False):
        jax.tree.map(np.testing.assert_array_equal, got, want)
    other = batches(0, 1, crop, seed=1)[0]
    assert not np.array_equal(other[0], complete[0][0])


def test_a_micro_batch_has_the_same_rows_as_from_the_host():
    made = on_device.train_batches(
        source(), batch_size=24, image_size=SIZE, seed=0, num_steps=1, accum_steps=3
    )
    rows = np.asarray(next(made).positions)
    views = np.zeros((24, 2, SIZE, SIZE, 3), np.uint8)
    from_host = parallel.split(Batch(views, None, np.arange(24)), accum_steps=3)
    np.testing.assert_array_equal(rows, from_host.positions)


def test_without_labels():
    images = data.from_arrays(source().images)
    made = on_device.train_batches(images, batch_size=12, image_size=SIZE, seed=0, num_steps=1)
    assert next(made).labels is None


def test_batches_are_sharded_like_those_from_the_host():
    """So that the update compiles once for both."""
    made = on_device.train_batches(source(), batch_size=BATCH, image_size=SIZE, seed=0, num_steps=1)
    batch = next(made)
    from_host = parallel.device_put_batch(
        Batch(np.zeros((BATCH, 2, SIZE, SIZE, 3), np.uint8), None, np.zeros(BATCH, np.int32))
    )
    for name in ("examples", "positions"):
        ours, want = getattr(batch, name), getattr(from_host, name)
        assert (ours.sharding, ours.shape, ours.dtype) == (want.sharding, want.shape, want.dtype)


def test_local_views_are_small_parts_of_the_image():
    """From the host and on the device; the global views are the same as without them."""
    rows, columns = np.mgrid[:24, :30].astype(np.uint8) * 8
    ramp = np.stack([rows, columns, np.zeros_like(rows)], -1)
    images = data.from_arrays(np.broadcast_to(ramp, (40, 24, 30, 3)))
    options = {"batch_size": 40, "image_size": 6, "seed": 3, "num_steps": 1}
    local = LocalViews(3, 4, data.Crop(area=(0.05, 0.1), flip=0.5))
    for make in (on_device.train_batches, data.train_batches):
        (plain,), (batch,) = (list(make(images, **options, local=x)) for x in (None, local))
        np.testing.assert_array_equal(batch.examples["global"], plain.examples)
        views = np.asarray(batch.examples["local"]).reshape(40, 3, 4, 4, 3)
        assert views.dtype == np.uint8
        assert len(np.unique(views.reshape(120, -1), axis=0)) > 60  # no two of an image are alike
        # Interpolation overshoots a little at the edge of a box.
        extent = (np.ptp(views[..., :2].astype(int), axis=(2, 3)) / 8).prod(-1) / (24 * 30)
        assert extent.min() > 0.01 and extent.max() < 0.12


@pytest.mark.parametrize("fit", ["clip", "retry"])
def test_views_have_the_distribution_of_the_host(fit):
    """Position and size of crops, measured on ramps, over many draws of both."""
    rows, columns = np.mgrid[:24, :30].astype(np.uint8) * 8
    ramp = np.stack([rows, columns, np.zeros_like(rows)], -1)
    images = data.from_arrays(np.broadcast_to(ramp, (600, 24, 30, 3)))
    options = {"batch_size": 600, "image_size": 6, "seed": 3, "num_steps": 2}
    options["crop"] = data.Crop(fit=fit)
    batches = on_device.train_batches(images, **options)
    device = [joined(batch._replace(labels=batch.positions))[0] for batch in batches]
    host = [batch.examples for batch in data.train_batches(images, **options)]

    def moments(views):
        views = np.concatenate(views).astype(float).swapaxes(0, 1)
        centre = views.mean((2, 3))[..., :2]
        height = np.abs(views[:, :, -1, :, 0] - views[:, :, 0, :, 0]).mean(2)
        width = np.abs(views[:, :, :, -1, 1] - views[:, :, :, 0, 1]).mean(2)
        mirrored = views[:, :, :, -1, 1].mean(2) < views[:, :, :, 0, 1].mean(2)
        features = np.stack([height, width, mirrored, height * width], -1)
        features = np.concatenate([centre, centre**2, features], -1)
        products = (features - features.mean((0, 1))).prod(0)  # their mean is zero
        numbers = np.concatenate([*features, products], 1)
        return numbers.mean(0), numbers.std(0) / np.sqrt(len(numbers))

    (want, error), (got, _) = moments(host), moments(device)
    assert np.all(error > 0)
    np.testing.assert_array_less(np.abs(got - want), 4 * np.sqrt(2) * error)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x.reshape(len(x), -1))


def test_updates_compile_and_transfer_nothing_after_the_first():
    """Not at the end of an epoch either."""
    heads = {name: models.MLP(4, 4, axis_name=parallel.AXIS) for name in ("projector", "predictor")}
    plain = image_augment.View(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)
    policy = image_augment.Policy(plain, plain, (0.5,) * 3, (0.25,) * 3)
    tau = optim.target_decay(0.9, 20)
    learner = byol.make_learner(
        Encoder(), policy, policy.preprocess, optim.sgd(0.1), tau, axis_name=parallel.AXIS, **heads
    )
    made = functools.partial(
        on_device.train_batches,
        source(),
        batch_size=BATCH,
        image_size=SIZE,
        seed=0,
        num_steps=2 * STEPS + 1,
    )
    update = parallel.update(learner)
    state = parallel.replicate(byol.init(learner, 0, parallel.first_rows(next(made()), 2)))
    batches = made()
    state, *_ = update(state, next(batches)._replace(labels=None))
    with Compilations() as compilations, jax.transfer_guard("disallow_explicit"):
        for batch in batches:
            state, *_ = update(state, batch._replace(labels=None))
    assert compilations.count == 0
    assert parallel.local(state).step == 2 * STEPS + 1


@pytest.mark.parametrize(
    ("wanted", "limit", "expected"),
    [
        ("auto", 1e6, "device"),
        ("auto", 1e3, "host"),
        ("host", 1e6, "host"),
        ("device", 0, "device"),
    ],
)
def test_where_crops_are_computed(monkeypatch, wanted, limit, expected):
    monkeypatch.setattr(on_device, "AUTO_LIMIT", limit)
    config = config_lib.default()
    config.data.placement = wanted
    assert on_device.placement(config, source()) == expected
    config.data.placement = "auto"
    assert on_device.placement(config, type("Streamed", (), {"name": "folder:x"})()) == "host"


def test_impossible_placements_are_refused(monkeypatch):
    config = config_lib.default()
    config.data.placement = "device"
    streamed = type("Streamed", (), {"name": "folder:x"})()
    with pytest.raises(ConfigError, match="not for folder:x: set it to host, or to auto"):
        on_device.placement(config, streamed)
    config.data.service = "grpc://here:1"
    with pytest.raises(ConfigError, match=r"needs no config\.data\.service: leave it out"):
        on_device.placement(config, source())
    config.data.service = ""
    monkeypatch.setattr(on_device, "device_memory", lambda: 10)
    with pytest.raises(ConfigError, match=r"a device has 0\.0: set config\.data\.placement=host"):
        on_device.placement(config, source())


def test_evaluation_of_arrays_equals_tensorflow():
    images = source().images
    got = list(data.eval_batches(source(), batch_size=20, image_size=6, crop_fraction=0.8))
    assert [len(batch) for batch, _ in got] == [20, 20, 10]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in got]), source().labels)
    for image, view in zip(images, np.concatenate([batch for batch, _ in got]), strict=True):
        want = center_crop(tf.constant(image), 6, 0.8).numpy()
        assert np.abs(view.astype(int) - want).max() <= 1
    some = list(
        data.eval_batches(source(), batch_size=20, image_size=SIZE, crop_fraction=1, limit=9)
    )
    assert len(some) == 1 and len(some[0][0]) == 9
    assert len({image.tobytes() for image in some[0][0]} & {i.tobytes() for i in images}) == 9


def test_both_placements_give_the_same_kind_of_batch():
    config = tiny_config()
    config.data.test_split = ""
    images, _ = inputs.open_sources(config)
    made = {}
    for config.data.placement in ("host", "device"):
        batch = next(inputs.train_batches(config, images, 0, 1))
        made[config.data.placement] = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch)
    assert made["host"] == made["device"]


def test_training_from_arrays_needs_no_tensorflow(tmp_path):
    """A run from an archive with kNN, in a process where TensorFlow cannot be imported."""
    images, labels = np.asarray(source(1).images), np.arange(N) % 7
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    np.savez(tmp_path / "test.npz", images=images[:20], labels=np.arange(20) % 7)
    program = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "from pathlib import Path\n"
        "from tiny import tiny_config\n"
        "from byol_jax.train import loop\n"
        "config = tiny_config()\n"
        "config.steps, config.batch_size, config.data.image_size = 3, 8, 8\n"
        f"config.data.source = {f'npz:{tmp_path}'!r}\n"
        f"assert loop.train(config, Path({str(tmp_path / 'run')!r}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "tests", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "knn_test_top1" in (tmp_path / "run" / "metrics.jsonl").read_text()
