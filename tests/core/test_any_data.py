"""The same `byol.update` trains images, signals, modules with dropout and dictionaries of arrays.

Each case takes a few steps: with jax.jit on one device, with parallel.update on four, and on one
device with two micro-batches.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import byol, models, optim, parallel
from byol_jax.augment import image as image_augment

BATCH = 16
STEPS = 3


class Head(nn.Module):
    """A projector or predictor without batch norm, in which micro-batches change nothing."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(4)(nn.tanh(nn.Dense(8)(x)))


# (a) Images.


class ImageEncoder(nn.Module):
    """A convolution and a synchronised batch norm."""

    axis_name: str | None

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(6, (3, 3), strides=(2, 2), use_bias=False)(images)
        x = models.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
        return nn.relu(x).mean((1, 2))


def images(rng):
    return rng.integers(0, 256, (BATCH, 2, 8, 8, 3), np.uint8)


# (b) Signals: a two-line augmentation.


def signals(rng):
    return rng.normal(size=(BATCH, 32)).astype(np.float32)


def add_noise(key, signal):
    noise = 0.3 * jax.random.normal(key, (2, *signal.shape))
    return signal + noise[0], signal + noise[1]


class SignalEncoder(nn.Module):
    """A one-dimensional convolution, without a training mode."""

    axis_name: str | None

    @nn.compact
    def __call__(self, signal):
        return nn.tanh(nn.Conv(6, (5,))(signal[..., None])).mean(1)


# (c) A user's module with dropout and drop path.


class DropoutEncoder(nn.Module):
    """Dropout on features, on merged axes and of residual branches (drop path)."""

    axis_name: str | None

    @nn.compact
    def __call__(self, signal, train):
        x = nn.Dense(6)(signal.reshape(len(signal), 4, 8))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        flat = nn.Dense(6)(x.reshape(-1, 6))  # (batch * 4, 6)
        flat = nn.Dropout(0.3)(flat, deterministic=not train)
        branch = nn.tanh(flat).reshape(x.shape)
        drop_path = nn.Dropout(0.4, broadcast_dims=(1, 2), deterministic=not train)
        return (x + drop_path(branch)).reshape(len(x), -1)


# (d) Views that are dictionaries of arrays of different shapes.


def pictures_and_sounds(rng):
    return {
        "picture": rng.integers(0, 256, (BATCH, 6, 6, 3), np.uint8),
        "sound": rng.normal(size=(BATCH, 20)).astype(np.float32),
    }


def one_view_per_modality(key, example):
    picture = example["picture"] / 255 + 0.1 * jax.random.normal(key, (6, 6, 3))
    return {"picture": picture}, {"sound": example["sound"], "gain": jax.random.uniform(key, (1,))}


class TwoModalities(nn.Module):
    """An encoder that dispatches on the keys of a view."""

    axis_name: str | None

    @nn.compact
    def __call__(self, view, train):
        if "picture" in view:
            x = nn.Conv(6, (3, 3), use_bias=False, name="picture")(view["picture"])
            name = "picture_norm"
        else:
            x = nn.Dense(6, use_bias=False, name="sound")(view["sound"] * (1 + view["gain"]))
            name = "sound_norm"
        norm = models.BatchNorm(not train, axis_name=self.axis_name, name=name)
        return nn.tanh(norm(x)).reshape(len(x), -1, 6).mean(1)


VIEW = image_augment.View(jitter_prob=0.0, blur_prob=0.0, solarize_prob=0.5)  # fast to compile
IMAGES = image_augment.Policy(VIEW, VIEW, image_augment.CIFAR10_MEAN, image_augment.CIFAR10_STD)
CASES = {  # encoder, examples, augment, preprocess
    "images": (ImageEncoder, images, IMAGES, IMAGES.preprocess),
    "signals": (SignalEncoder, signals, add_noise, lambda x: x),
    "dropout": (DropoutEncoder, signals, add_noise, lambda x: x),
    "modalities": (
        TwoModalities,
        pictures_and_sounds,
        one_view_per_modality,
        lambda examples: {"picture": examples["picture"] / 255},
    ),
}


def make_learner(case, axis_name=None, accum_steps=1):
    encoder, _, augment, preprocess = CASES[case]
    return byol.make_learner(
        encoder(axis_name),
        augment,
        preprocess,
        optim.sgd(0.2),
        optim.target_decay(0.9, 10),
        projector=Head(),
        predictor=Head(),
        num_classes=3,
        axis_name=axis_name,
        accum_steps=accum_steps,
    )


def make_batch(case, step):
    rng = np.random.default_rng(step)
    labels = rng.integers(0, 3, BATCH).astype(np.int32)
    return byol.Batch(CASES[case][1](rng), labels, np.arange(BATCH, dtype=np.int32))


def train(case, update, learner):
    """The states after each step, and the metrics of the last."""
    states = [byol.init(learner, 1, make_batch(case, 0))]
    for step in range(STEPS):
        state, metrics, *_ = update(states[-1], make_batch(case, step))
        states.append(state)
    return states, metrics


@functools.cache
def on_one_device(case, accum_steps=1):
    learner = make_learner(case, accum_steps=accum_steps)
    return train(case, jax.jit(functools.partial(byol.update, learner)), learner)


@functools.cache
def on_four_devices(case):
    assert jax.device_count() == 4
    learner = make_learner(case, parallel.AXIS)
    mapped = parallel.update(learner)

    def update(state, batch):
        state = jax.tree.map(np.array, state)  # the update donates its copy on the devices
        return parallel.local(mapped(parallel.replicate(state), parallel.device_put_batch(batch)))

    return train(case, update, learner)


def assert_close(got, want, tolerance):
    """Every leaf agrees up to a fraction of its largest value."""
    want = dict(jax.tree_util.tree_leaves_with_path(want))
    got = dict(jax.tree_util.tree_leaves_with_path(got))
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        scale = np.abs(leaf).max() + 1e-6
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(got[path] / scale, leaf / scale, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_update_trains(case):
    """The loss is finite, and every parameter moves."""
    states, metrics = on_one_device(case)
    assert all(np.isfinite(x) for x in metrics.values())
    assert {"loss", "byol_loss", "probe_loss", "tau"} < metrics.keys()
    first, last = states[0], states[-1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(first.online_params):
        moved = np.abs(dict(jax.tree_util.tree_leaves_with_path(last.online_params))[path] - leaf)
        assert moved.max() > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize("case", CASES)
def test_one_device_equals_four(case):
    (one, metrics), (four, metrics_of_four) = on_one_device(case), on_four_devices(case)
    assert_close(four[-1], one[-1], 2e-5)
    assert_close(metrics_of_four, metrics, 1e-5)


@pytest.mark.parametrize("case", ["signals", "dropout"])  # the others have batch norm
def test_micro_batches_do_not_change_the_update(case):
    (once, metrics), (twice, metrics_of_two) = on_one_device(case), on_one_device(case, 2)
    assert_close(twice[-1], once[-1], 1e-5)
    assert_close(metrics_of_two, metrics, 1e-5)


def test_each_modality_has_its_parameters_and_statistics():
    states, _ = on_one_device("modalities")
    state = states[-1]
    for params in (state.online_params, state.target_params):
        assert set(params["encoder"]) == {"picture", "picture_norm", "sound", "sound_norm"}
    for stats in (state.online_stats, state.target_stats):
        assert {norm: int(s["count"]) for norm, s in stats["encoder"].items()} == {
            "picture_norm": STEPS,
            "sound_norm": STEPS,
        }


@pytest.mark.parametrize("case", CASES)
def test_embedding_on_four_devices(case):
    state = on_one_device(case)[0][-1]
    examples = jax.tree.map(lambda x: x[:13], make_batch(case, 7).examples)
    if case == "images":
        examples = examples[:, 0]
    want = byol.embed(make_learner(case), state, examples)
    got = parallel.embedder(make_learner(case, parallel.AXIS))(state)(examples, 8)
    assert got.shape == want.shape and len(got) == 13
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# Dropout by position.

POSITIONS = jnp.array([7, 2, 5, 11])


def masks(module, inputs, positions, key=0, **kwargs):
    """What a dropout module returns within the context."""
    with models.dropout_by_position(positions):
        return np.asarray(module.apply({}, inputs, rngs=jax.random.key(key), **kwargs))


def dropout(**kwargs):
    return nn.Dropout(**{"rate": 0.5, "deterministic": False} | kwargs)


@pytest.mark.parametrize(
    ("shape", "broadcast_dims"),
    [((4, 50), ()), ((4, 5, 30), (1,)), ((4, 30, 5), (-1,)), ((12, 30), ())],
)
def test_masks_follow_the_positions(shape, broadcast_dims):
    """In another order and in parts, every row has the same mask; keys and positions change it."""
    module, inputs = dropout(broadcast_dims=broadcast_dims), jnp.ones(shape)
    got = masks(module, inputs, POSITIONS)
    assert set(np.unique(got)) == {0.0, 2.0}
    rows = got.reshape(4, -1)
    assert len({row.tobytes() for row in rows}) == 4
    reversed_rows = masks(module, inputs, POSITIONS[::-1]).reshape(4, -1)
    np.testing.assert_array_equal(reversed_rows[::-1], rows)
    half = shape[0] // 2
    parts = [masks(module, inputs[:half], POSITIONS[i : i + 2]) for i in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), got)
    assert np.any(masks(module, inputs, POSITIONS, key=1) != got)
    assert np.any(masks(module, inputs, POSITIONS + 20) != got)


def test_drop_path_drops_complete_examples():
    inputs = jnp.ones((4, 3, 3, 2))
    got = masks(dropout(broadcast_dims=(1, 2, 3)), jnp.ones((4, 3, 3, 2)), POSITIONS)
    assert got.shape == inputs.shape
    assert all(len(np.unique(row)) == 1 for row in got)
    many = masks(dropout(broadcast_dims=(1,)), jnp.ones((1000, 2)), jnp.arange(1000))
    assert 0.45 < np.mean(many[:, 0] > 0) < 0.55


def test_dropout_keeps_half_of_the_features():
    got = masks(dropout(), jnp.ones((100, 100)), jnp.arange(100))
    assert 0.48 < np.mean(got > 0) < 0.52


def test_two_dropout_modules_have_different_masks():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.stack([dropout()(x), dropout()(x)], axis=1)

    first, second = masks(Twice(), jnp.ones((4, 50)), POSITIONS).swapaxes(0, 1)
    assert np.any(first != second)


def test_an_explicit_key_is_folded_with_positions_too():
    inputs = jnp.ones((4, 50))
    got = masks(dropout(), inputs, POSITIONS, rng=jax.random.key(3))
    again = masks(dropout(), inputs, POSITIONS[::-1], rng=jax.random.key(3), key=1)
    np.testing.assert_array_equal(again[::-1], got)
    assert len({row.tobytes() for row in got}) == 4


def test_inputs_as_a_keyword():
    inputs = jnp.ones((4, 50))
    with models.dropout_by_position(POSITIONS):
        got = dropout().apply({}, inputs=inputs, rngs=jax.random.key(0))
    np.testing.assert_array_equal(got, masks(dropout(), inputs, POSITIONS))


@pytest.mark.parametrize(
    ("module", "kwargs"),
    [
        (nn.Dropout(0.5), {"deterministic": True}),
        (nn.Dropout(0.5, deterministic=True), {}),
        (nn.Dropout(0.0, deterministic=False), {}),
    ],
)
def test_dropout_that_does_nothing_needs_no_key(module, kwargs):
    inputs = jnp.arange(8.0).reshape(4, 2)
    with models.dropout_by_position(POSITIONS):
        got = module.apply({}, inputs, **kwargs)
    assert got is inputs


@pytest.mark.parametrize(
    ("shape", "broadcast_dims"),
    [((3, 50), ()), ((), ()), ((4, 50), (0,)), ((4, 50), (-2,))],
    ids=["another first axis", "scalar", "shared mask", "shared mask, negative axis"],
)
def test_other_inputs_use_the_key_of_the_module(shape, broadcast_dims):
    module, inputs = dropout(broadcast_dims=broadcast_dims), jnp.ones(shape)
    want = module.apply({}, inputs, rngs=jax.random.key(0))
    np.testing.assert_array_equal(masks(module, inputs, POSITIONS), want)


def test_evaluation_has_no_dropout():
    """`infer` needs no keys, and its result depends on neither positions nor seed."""
    state, learner = on_one_device("dropout")[0][-1], make_learner("dropout")
    examples = make_batch("dropout", 5).examples
    got = byol.embed(learner, state, examples)
    np.testing.assert_allclose(byol.embed(learner, state, examples[3:5]), got[3:5], rtol=1e-5)
    params = state.online_params["encoder"]
    x = examples.reshape(BATCH, 4, 8) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    want = x + np.tanh(x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"])
    np.testing.assert_allclose(got, want.reshape(BATCH, -1), rtol=1e-5, atol=1e-5)


def test_the_four_passes_have_different_masks():
    """Online and target network, view 1 and view 2: no two share a key."""

    class Mask(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dropout(0.5, deterministic=not train)(jnp.ones((len(x), 64)))

    found = []

    def objective(online, target, axis_name):
        found.extend(outputs.embedding for outputs in (*online, *target))
        return byol.byol_objective(online, target, axis_name)

    learner = byol.make_learner(
        Mask(),
        add_noise,
        lambda x: x,
        optim.sgd(0.1),
        optax.constant_schedule(0.9),
        projector=Head(),
        predictor=Head(),
        objective=objective,
    )
    batch = make_batch("signals", 0)
    state = byol.init(learner, 0, batch)
    byol.loss_fn(state.online_params, learner, state, batch)
    assert len({np.asarray(mask).tobytes() for mask in found}) == 4
    for mask in found:
        assert len({row.tobytes() for row in np.asarray(mask)}) == BATCH
