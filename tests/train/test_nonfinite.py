"""Updates that are not finite: detected, skipped except for counts of updates, and counted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import byol, models, optim, targets
from byol_jax.augment import image as image_augment
from byol_jax.errors import UserError
from byol_jax.runs import config as config_lib
from byol_jax.runs import manifest
from byol_jax.train import nonfinite

PLAIN = image_augment.View(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, solarize_prob=0.0)
SHAPE = (8, 8, 3)
POLICY = image_augment.Policy(PLAIN, PLAIN, image_augment.IMAGENET_MEAN, (0.2,) * 3)


@pytest.fixture(scope="module")
def learner():
    """A learner whose learning rate is infinite in its second update."""
    return byol.make_learner(
        models.ConvNet(channels=(4,), features=4),
        POLICY,
        POLICY.preprocess,
        optim.lars(lambda count: jnp.where(count == 1, jnp.inf, 0.1)),
        optim.target_decay(0.9, 20),
        projector=models.MLP(4, 4),
        predictor=models.MLP(4, 4),
    )


def batches():
    rng = np.random.default_rng(0)
    positions = np.arange(4, dtype=np.int32)
    return [
        byol.Batch(rng.integers(0, 256, (4, 2, *SHAPE), np.uint8), None, positions)
        for _ in range(3)
    ]


def test_a_non_finite_update_changes_only_counts(learner):
    update = jax.jit(functools.partial(nonfinite.update, learner, skip=True))
    states, finite = [byol.init(learner, 0, batches()[0])], []
    for batch in batches():
        state, _, is_finite = update(states[-1], batch)
        states.append(state)
        finite.append(bool(is_finite))
    assert finite == [1, 0, 1]  # the third has its own rate, not that of the second again
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    leaves = [manifest.leaves(state) for state in states[1:3]]
    changed = {name for name in leaves[0] if np.any(leaves[0][name] != leaves[1][name])}
    assert changed == {"step", *(name for name in leaves[0] if name.endswith("/count"))} - {
        name for name in leaves[0] if "stats" in name
    }


def test_a_due_copy_is_made_although_its_update_is_skipped(learner):
    copying = dataclasses.replace(learner, next_target=targets.copy_every(2))
    update = jax.jit(functools.partial(nonfinite.update, copying, skip=True))
    states = [byol.init(copying, 0, batches()[0])]
    for batch in batches()[:2]:
        states.append(update(states[-1], batch)[0])
    _, before, after = states
    for part, params in after.target_params.items():
        jax.tree.map(np.testing.assert_array_equal, params, before.online_params[part])
    changed = jax.tree.map(np.array_equal, after.target_params, before.target_params)
    assert not all(jax.tree.leaves(changed))


def test_a_finite_update_is_that_of_byol(learner):
    state, batch = byol.init(learner, 0, batches()[0]), batches()[0]
    want, _ = jax.jit(functools.partial(byol.update, learner))(state, batch)
    got, *_ = jax.jit(functools.partial(nonfinite.update, learner, skip=True))(state, batch)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def metrics(loss, finite):
    """What the guard receives: metrics of an update, and whether they are finite."""
    return {"loss": loss, "gradient_norm": 1.0, "parameter_norm": 1.0}, finite


def test_the_guard_counts_skipped_updates_in_a_row():
    settings = config_lib.default()
    settings.on_nonfinite, settings.max_skipped_updates = "skip", 2
    guard = nonfinite.NonFiniteGuard(settings)
    finite, nan = metrics(1.0, True), metrics(float("nan"), False)
    assert guard.check(1, *finite, lambda: None) is None
    message = "The loss at step 2 is nan: the update was skipped (1 in a row)."
    assert guard.check(2, *nan, lambda: None) == message
    assert "(2 in a row)" in guard.check(3, *nan, lambda: None)
    assert guard.check(4, *finite, lambda: None) is None
    assert "(1 in a row)" in guard.check(5, *nan, lambda: None)
    # A new start keeps the count.
    guard = nonfinite.NonFiniteGuard(settings, guard.skipped_in_a_row)
    assert "(2 in a row)" in guard.check(6, *nan, lambda: None)
    with pytest.raises(UserError, match=r"at step 7 is nan, and 2 updates before it were skipped"):
        guard.check(7, *nan, lambda: 5)


def test_the_guard_stops_a_run_that_does_not_skip():
    guard = nonfinite.NonFiniteGuard(config_lib.default())
    with pytest.raises(UserError, match=r"step 3 is inf; no checkpoint.*on_nonfinite=skip"):
        guard.check(3, *metrics(float("inf"), False), lambda: None)
