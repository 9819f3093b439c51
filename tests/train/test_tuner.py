"""One update of fine-tuning against plain NumPy, and on several devices."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import byol, models, parallel
from byol_jax.train.finetune import tuner as tuner_lib

CLASSES, STEPS, ROWS = 3, 4, 8
RATE, DECAY = 0.5, 0.1
SETTINGS = tuner_lib.Settings(RATE, DECAY, STEPS)


class Linear(nn.Module):
    """An encoder of 2 x 2 gray images: W x + b."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), 4))


def make_tuner(encoder, axis_name=None, frozen=()):
    return tuner_lib.Tuner(
        models.Classifier(encoder, CLASSES),
        lambda images: (images.astype(jnp.float32) / 255 - 0.5) / 0.25,
        tuner_lib.optimizer(ROWS, frozen),
        axis_name=axis_name,
    )


def batch(step, size=2):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (ROWS, 1, size, size, 1), np.uint8)
    labels = rng.integers(0, CLASSES, ROWS, np.int32)
    return byol.Batch(images, labels, np.arange(ROWS, dtype=np.int32))


def numpy_gradients(params, images, labels):
    """Of the mean cross-entropy of two linear layers."""
    (w1, b1), (w2, b2) = params
    x = (images.reshape(ROWS, 4) / 255 - 0.5) / 0.25
    hidden = x @ w1 + b1
    logits = hidden @ w2 + b2
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    errors = (shares - np.eye(CLASSES)[labels]) / ROWS
    back = errors @ w2.T
    return [(x.T @ back, back.sum(axis=0)), (hidden.T @ errors, errors.sum(axis=0))]


def layers(params):
    return [
        tuple(np.asarray(layer[key], np.float64) for key in ("kernel", "bias"))
        for layer in (params["encoder"]["Dense_0"], params["head"])
    ]


def test_updates_equal_nesterov_sgd_in_numpy():
    tuner = make_tuner(Linear())
    state = tuner_lib.init(tuner, 0, (2, 2, 1), None, SETTINGS)
    update = jax.jit(functools.partial(tuner_lib.update, tuner))
    want = layers(state.params)
    velocities = [(np.zeros_like(w), np.zeros_like(b)) for w, b in want]
    for step in range(STEPS):
        rows = batch(step)
        state, metrics = update(state, rows)
        gradients = numpy_gradients(want, rows.examples, rows.labels)
        rate = RATE * ROWS / 256 * (1 + np.cos(np.pi * step / STEPS)) / 2
        for i, (w, _) in enumerate(want):
            gradient = gradients[i][0] + DECAY * w, gradients[i][1]  # biases do not decay
            velocities[i] = tuple(0.9 * v + g for v, g in zip(velocities[i], gradient, strict=True))
            want[i] = tuple(
                p - rate * (g + 0.9 * v)
                for p, g, v in zip(want[i], gradient, velocities[i], strict=True)
            )
    for found, expected in zip(layers(state.params), want, strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert state.step == STEPS and 0 <= metrics["train_top1"] <= 1


def test_it_starts_from_the_encoder_and_a_random_head():
    tuner = make_tuner(models.make_encoder("convnet", channels=(4,), features=8))
    random = tuner_lib.init(tuner, 0, (8, 8, 1), None, SETTINGS)
    encoder = {"params": jax.tree.map(lambda x: x + 1, random.params["encoder"])}
    encoder["batch_stats"] = random.stats.get("encoder", {})
    state = tuner_lib.init(tuner, 0, (8, 8, 1), encoder, SETTINGS)
    for found, given in zip(
        jax.tree.leaves(state.params["encoder"]), jax.tree.leaves(encoder["params"]), strict=True
    ):
        np.testing.assert_array_equal(found, given)
    np.testing.assert_array_equal(state.params["head"]["kernel"], random.params["head"]["kernel"])
    other = tuner_lib.init(tuner, 1, (8, 8, 1), encoder, SETTINGS)
    assert np.any(other.params["head"]["kernel"] != state.params["head"]["kernel"])


@pytest.fixture(scope="module")
def on_devices():
    """Updates of a network with batch norm, on four devices and on one."""
    encoder = functools.partial(
        models.make_encoder, "resnet8", stem="strided", width_multiplier=0.125
    )
    one, four = make_tuner(encoder()), make_tuner(encoder(axis_name=parallel.AXIS), parallel.AXIS)
    state = tuner_lib.init(one, 0, (16, 16, 1), None, SETTINGS)
    alone, together = state, parallel.replicate(state)
    update_one = jax.jit(functools.partial(tuner_lib.update, one))
    update_four = parallel.update(four, tuner_lib.update)
    for step in range(2):
        rows = batch(step, size=16)
        alone, metrics = update_one(alone, rows)
        together, metrics_of_four, _ = update_four(together, parallel.device_put_batch(rows))
    return one, alone, metrics, four, parallel.local(together), parallel.local(metrics_of_four)


def test_four_devices_equal_one(on_devices):
    _, alone, metrics, _, together, metrics_of_four = on_devices
    assert jax.local_device_count() == 4
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics_of_four["loss"], metrics["loss"], rtol=1e-5)


def test_running_averages_decay_by_the_setting(on_devices):
    """The second update of averages m1 is m1 + (1 - d) / (1 - d^2) (m2 - m1)."""
    one, *_ = on_devices
    first = tuner_lib.init(one, 0, (16, 16, 1), None, SETTINGS)

    def averages(decay):
        tuner = dataclasses.replace(one, batch_norm_decay=decay)
        update = jax.jit(functools.partial(tuner_lib.update, tuner))
        states = [first]
        for step in range(2):
            states.append(update(states[-1], batch(step, size=16))[0])
        return [np.asarray(state.stats["encoder"]["bn1"]["mean"]) for state in states[1:]]

    (m1, at_once), (same, slowly) = averages(0.0), averages(0.9)
    np.testing.assert_allclose(same, m1, rtol=1e-5)  # the first is that of the batch
    np.testing.assert_allclose(slowly, m1 + (at_once - m1) * 0.1 / 0.19, rtol=1e-4, atol=1e-6)
    assert np.abs(at_once - m1).max() > 0.01


def test_running_statistics_follow_and_serve_the_prediction(on_devices):
    one, alone, *_ = on_devices
    fresh = tuner_lib.init(one, 0, (16, 16, 1), None, SETTINGS)
    changed = [
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(jax.tree.leaves(alone.stats), jax.tree.leaves(fresh.stats), strict=True)
    ]
    assert changed and all(changed)
    images = batch(5, size=16).examples[:, 0]
    predict = jax.jit(functools.partial(tuner_lib.predict, one))
    together = predict(alone, images)
    np.testing.assert_allclose(predict(alone, images[:1])[0], together[0], rtol=1e-4, atol=1e-5)


def test_frozen_parameters_stay():
    tuner = make_tuner(Linear(), frozen=("Dense_0",))
    state = tuner_lib.init(tuner, 0, (2, 2, 1), None, SETTINGS)
    after, _ = jax.jit(functools.partial(tuner_lib.update, tuner))(state, batch(0))
    (w1, b1), (w2, _) = layers(after.params)
    (before1, bias1), (before2, _) = layers(state.params)
    np.testing.assert_array_equal(w1, before1)
    np.testing.assert_array_equal(b1, bias1)
    assert np.any(w2 != before2)
