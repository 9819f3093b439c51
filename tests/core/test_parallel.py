"""One device and four give the same update; replicas agree; batch norm uses the complete batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import byol, models, optim, parallel
from byol_jax.augment import image as image_augment
from byol_jax.backend.compile_cache import Compilations
from byol_jax.errors import ConfigError
from byol_jax.train import health

SHAPE = (8, 8, 3)
BATCH = 16


class Encoder(nn.Module):
    """A convolution and a synchronised batch norm."""

    axis_name: str | None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), strides=(2, 2))(x)
        norm = models.BatchNorm(use_running_average=not train, axis_name=self.axis_name)
        return nn.relu(norm(x)).mean((1, 2))


def make(axis_name):
    return byol.make_learner(
        Encoder(axis_name),
        image_augment.IMAGENET,
        image_augment.IMAGENET.preprocess,
        optim.lars(optim.warmup_cosine(20.0, 1, 20), weight_decay=1e-3),
        optim.target_decay(0.9, 20),
        projector=models.MLP(8, 4, axis_name=axis_name),
        predictor=models.MLP(8, 4, axis_name=axis_name),
        num_classes=3,
        axis_name=axis_name,
    )


def make_batch(step):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (BATCH, 2, *SHAPE), np.uint8)
    labels = rng.integers(0, 3, BATCH).astype(np.int32)
    return byol.Batch(images, labels, np.arange(BATCH, dtype=np.int32))


@pytest.fixture(scope="module")
def trained():
    """States and metrics after three steps: on one device, and on all four."""
    assert jax.device_count() == 4
    one, four = make(None), make(parallel.AXIS)
    everywhere = parallel.update(four)
    updates = (
        jax.jit(functools.partial(byol.update, one)),
        lambda state, batch: everywhere(state, parallel.device_put_batch(batch))[:2],
    )
    states = [
        byol.init(one, 5, make_batch(0)),
        parallel.replicate(byol.init(four, 5, make_batch(0))),
    ]
    for step in range(3):
        pairs = [u(s, make_batch(step)) for u, s in zip(updates, states, strict=True)]
        states, metrics = zip(*pairs, strict=True)
    return states, metrics


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def is_noise(name):
    """Whether a leaf belongs to a bias right before a batch norm, which only rounding moves."""
    return "['dense1']['bias']" in name or "['Conv_0']['bias']" in name


def test_one_device_and_four_give_the_same_update(trained):
    (one, four), (metrics1, metrics4) = trained
    one, four = named(one), named(four)
    assert one.keys() == four.keys() and sum(map(is_noise, one)) == 8
    for name, want in one.items():
        if not is_noise(name):
            scale = np.abs(want).max() + 1e-12
            np.testing.assert_allclose(four[name] / scale, want / scale, atol=2e-5, err_msg=name)
    for key, want in metrics1.items():
        np.testing.assert_allclose(metrics4[key], want, rtol=1e-5, err_msg=key)


def test_a_micro_batch_is_the_same_examples_on_any_number_of_devices():
    batch = make_batch(0)
    rows = parallel.split(batch, accum_steps=2).positions
    assert rows.shape == (4, BATCH // 4)
    halves = rows.reshape(4, 2, -1).swapaxes(0, 1).reshape(2, -1)
    np.testing.assert_array_equal(halves, batch.positions.reshape(2, -1))


def test_all_replicas_hold_the_same_state_and_metrics(trained):
    (_, state), (_, metrics) = trained
    for name, leaf in {**named_arrays(state), **named_arrays(metrics)}.items():
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 4, name
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0], err_msg=name)


def named_arrays(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize(
    ("module", "row_shape"),
    [
        (models.MLP(5, 3, axis_name="batch"), (4,)),
        (models.ResNet8(stem="strided", width_multiplier=0.25, axis_name="batch"), (8, 8, 3)),
    ],
)
def test_batch_norm_is_synchronised(module, row_shape):
    """Statistics over four devices equal those of the complete batch on one."""
    x = np.random.default_rng(0).normal(size=(8, *row_shape)).astype(np.float32)
    alone = module.clone(axis_name=None)
    made = alone.init(jax.random.key(0), x, train=True)

    def run(module, x):
        return module.apply(made, x, train=True, mutable=["batch_stats"])

    want = jax.jit(lambda x: run(alone, x))(x)
    outputs, stats = jax.pmap(lambda x: run(module, x), axis_name="batch")(
        x.reshape(4, 2, *row_shape)
    )
    np.testing.assert_allclose(outputs.reshape(want[0].shape), want[0], atol=2e-5)
    for got, expected in zip(jax.tree.leaves(stats), jax.tree.leaves(want[1]), strict=True):
        for replica in got:
            np.testing.assert_allclose(replica, expected, atol=1e-5)


def test_updates_transfer_nothing_between_host_and_devices():
    """Once its batch is on the devices, the host only has to start an update."""
    learner = make(parallel.AXIS)
    update = parallel.update(learner)
    state = parallel.replicate(byol.init(learner, 0, make_batch(0)))
    batches = [parallel.device_put_batch(make_batch(step)) for step in range(3)]
    state, *_ = update(state, batches[0])
    requests = []
    with jax.transfer_guard("disallow_explicit"):
        for request, batch in zip((parallel.SAVE, parallel.STOP), batches[1:], strict=True):
            state, _, signals = update(state, batch, request)
            requests.append(parallel.local(signals)[0])
    assert requests == [parallel.SAVE, parallel.STOP]
    with jax.transfer_guard("disallow_explicit"), pytest.raises(Exception, match="host-to-device"):
        update(state, parallel.split(make_batch(3)))


def test_an_update_compiles_once():
    learner = make(parallel.AXIS)
    update = parallel.update(learner)
    state = parallel.replicate(byol.init(learner, 0, make_batch(0)))
    batches = [parallel.device_put_batch(make_batch(step)) for step in range(3)]
    with Compilations() as compilations:
        state, *_ = update(state, batches[0])
        after_first = compilations.count
        for batch in batches[1:]:
            state, *_ = update(state, batch)
    assert compilations.count == after_first > 0


def test_without_labels(trained):
    learner = byol.make_learner(
        Encoder(parallel.AXIS),
        image_augment.IMAGENET,
        image_augment.IMAGENET.preprocess,
        optim.sgd(0.1),
        optim.target_decay(0.9, 20),
        projector=models.MLP(8, 4, axis_name=parallel.AXIS),
        predictor=models.MLP(8, 4, axis_name=parallel.AXIS),
        axis_name=parallel.AXIS,
    )
    state = parallel.replicate(byol.init(learner, 0, make_batch(0)))
    batch = parallel.device_put_batch(make_batch(0)._replace(labels=None))
    _, metrics, (request,) = parallel.update(learner)(state, batch)
    assert request == parallel.NO_REQUEST
    assert set(metrics) == {"loss", "byol_loss", "tau", "gradient_norm", "parameter_norm"}


def test_embedding_any_number_of_images(trained):
    (_, four), _ = trained
    images = np.random.default_rng(1).integers(0, 256, (13, *SHAPE), np.uint8)
    want = byol.embed(make(None), parallel.local(four), images)
    got = parallel.embedder(make(parallel.AXIS))(four)(images, 6)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_health_features_equal_those_of_one_device():
    state = byol.init(make(None), 5, make_batch(0))
    want = jax.jit(functools.partial(health.features, make(None)))(state, make_batch(9))
    inspect = parallel.gather_rows(make(parallel.AXIS), health.features)
    got = inspect(parallel.replicate(state), parallel.device_put_batch(make_batch(9)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "accum_steps", "message"),
    [
        (6, 1, "among 4 devices: make it a multiple of 4"),
        (16, 3, "among 4 devices and config.accum_steps=3 micro-batches: make it a multiple of 12"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(size, accum_steps, message):
    with pytest.raises(ConfigError, match=rf"config.batch_size={size} does not divide {message}"):
        parallel.check_devices(size, accum_steps)


def test_dtype_of_metrics(trained):
    _, (_, metrics) = trained
    assert all(x.dtype == jnp.float32 for x in metrics.values())
