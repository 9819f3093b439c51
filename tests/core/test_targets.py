"""Targets beside the moving average: what they become after each update, on one device and four."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import byol, models, parallel, targets
from byol_jax.augment import image as image_augment

PLAIN = image_augment.View(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, solarize_prob=0.0)
STEPS = 5


class Encoder(nn.Module):
    """A dense layer over each channel's mean."""

    features: int = 6

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.features)(jnp.mean(images, axis=(1, 2)))


def make(next_target=None, target=None, axis_name=None):
    policy = image_augment.Policy(PLAIN, PLAIN, (0.5,) * 3, (0.25,) * 3)
    return byol.make_learner(
        Encoder(),
        policy,
        policy.preprocess,
        optax.sgd(0.5),
        lambda step: 0.9,
        projector=models.MLP(8, 4, axis_name=axis_name),
        predictor=models.MLP(8, 4, axis_name=axis_name),
        next_target=next_target,
        target=target,
        axis_name=axis_name,
    )


def make_batch():
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 4, 4, 3), np.uint8)
    return byol.Batch(images, None, np.arange(8, dtype=np.int32))


def train(learner, state):
    """The states after each of the steps, and the last metrics."""
    update, states = jax.jit(functools.partial(byol.update, learner)), []
    for _ in range(STEPS):
        state, metrics = update(state, make_batch())
        states.append(state)
    return states, metrics


def shared(state):
    """The online network's parameters that the target has too."""
    return {k: state.online_params[k] for k in state.target_params}


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def draw(learner):
    return lambda key: targets.draw(learner, key, make_batch())[0]


def test_a_frozen_target_stays():
    learner = make(targets.frozen())
    start = targets.init(learner, 0, make_batch())
    states, metrics = train(learner, start)
    assert all(equal(state.target_params, start.target_params) for state in states)
    assert not equal(states[0].online_params, start.online_params)
    assert "tau" not in metrics and np.isfinite(metrics["loss"])


def test_a_copy_is_made_after_every_second_update():
    learner = make(targets.copy_every(2))
    start = byol.init(learner, 0, make_batch())
    states, _ = train(learner, start)
    want = [start, states[1], states[1], states[3], states[3]]
    for state, source in zip(states, want, strict=True):
        assert equal(state.target_params, shared(source))


def test_weights_are_drawn_anew_after_every_second_update():
    learner = make(targets.redraw_every(2, draw(make())))
    start = targets.init(learner, 0, make_batch())
    states, _ = train(learner, start)
    drawn = [start, *states]
    for step in (1, 3, 5):
        assert equal(drawn[step].target_params, drawn[step - 1].target_params)
    for step in (2, 4):
        assert not equal(drawn[step].target_params, drawn[step - 1].target_params)
        assert not equal(drawn[step].target_params, shared(drawn[step]))
    assert not equal(drawn[2].target_params, drawn[4].target_params)
    # Of the initial distribution: LeCun's normal has the variance 1 / inputs.
    kernels = [state.target_params["projector"]["dense1"]["kernel"] for state in drawn[::2]]
    np.testing.assert_allclose(np.var(np.stack(kernels)), 1 / 6, rtol=0.2)


def test_a_target_of_its_own_is_drawn_apart_from_the_online_network():
    learner = make(targets.frozen())
    own, copied = (init(learner, 3, make_batch()) for init in (targets.init, byol.init))
    assert equal(own.online_params, copied.online_params)
    assert equal(copied.target_params, shared(copied))
    assert not equal(own.target_params, shared(own))
    assert not equal(own.target_params, targets.init(learner, 4, make_batch()).target_params)


def test_a_frozen_target_may_have_another_encoder():
    teacher = models.TargetNetwork(Encoder(11), models.MLP(8, 4))
    learner = make(targets.frozen(), teacher)
    start = targets.init(learner, 0, make_batch())
    assert start.target_params["encoder"]["Dense_0"]["kernel"].shape == (3, 11)
    states, metrics = train(learner, start)
    assert equal(states[-1].target_params, start.target_params)
    assert metrics["byol_loss"] < 4
    # The statistics of the teacher's batch norm are its own.
    assert states[-1].target_stats["projector"]["bn1"]["count"] == 2 * STEPS


@pytest.mark.parametrize("name", ["frozen", "copy", "redraw"])
def test_one_device_equals_four(name):
    def learner(axis_name):
        plain = make(axis_name=axis_name)
        rule = {
            "frozen": targets.frozen(),
            "copy": targets.copy_every(2),
            "redraw": targets.redraw_every(2, draw(plain)),
        }[name]
        return make(rule, axis_name=axis_name)

    one, four = learner(None), learner(parallel.AXIS)
    start = targets.init(one, 0, make_batch())
    (*_, want), _ = train(one, start)
    update, state = parallel.update(four), parallel.replicate(start)
    for _ in range(STEPS):
        state, *_ = update(state, parallel.device_put_batch(make_batch()))
    for a, b in zip(jax.tree.leaves(parallel.local(state)), jax.tree.leaves(want), strict=True):
        # Some processors round the sums over devices otherwise, by 1.3e-4 after these updates.
        np.testing.assert_allclose(a, b, rtol=3e-4, atol=1e-5)
