"""Updates that are not finite: noticed, left out without a trace but the step, and counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import byol, config, networks, nonfinite, optim, trees, views
from byol_jax.errors import UserError

PLAIN = views.View(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, solarize_prob=0.0)
SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def learner():
    """One whose learning rate is infinite in its second update."""
    return byol.make_learner(
        networks.ResNet8(stem="strided", width_multiplier=0.25),
        views.Policy(PLAIN, PLAIN, views.IMAGENET_MEAN, views.IMAGENET_STD),
        optim.lars(lambda count: jnp.where(count == 1, jnp.inf, 0.1)),
        optim.target_decay(0.9, 20),
        projector=networks.MLP(4, 4),
        predictor=networks.MLP(4, 4),
    )


def batches():
    rng = np.random.default_rng(0)
    positions = np.arange(4, dtype=np.int32)
    return [
        byol.Batch(rng.integers(0, 256, (2, 4, *SHAPE), np.uint8), None, positions)
        for _ in range(3)
    ]


def test_an_update_that_is_not_finite_leaves_only_counts(learner):
    update = jax.jit(functools.partial(nonfinite.update, learner, skip=True))
    states, finite = [byol.init(learner, 0, SHAPE)], []
    for batch in batches():
        state, metrics = update(states[-1], batch)
        states.append(state)
        finite.append(float(metrics["finite"]))
    assert finite == [1, 0, 1]  # the third has its own rate, not that of the second again
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    leaves = [trees.leaves(state) for state in states[1:3]]
    changed = {name for name in leaves[0] if np.any(leaves[0][name] != leaves[1][name])}
    assert changed == {"step", *(name for name in leaves[0] if name.endswith("/count"))} - {
        name for name in leaves[0] if "stats" in name
    }


def test_a_finite_update_is_byols(learner):
    state, batch = byol.init(learner, 0, SHAPE), batches()[0]
    want, _ = jax.jit(functools.partial(byol.update, learner))(state, batch)
    got, _ = jax.jit(functools.partial(nonfinite.update, learner, skip=True))(state, batch)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def metrics(loss, finite):
    return {"loss": loss, "gradient_norm": 1.0, "parameter_norm": 1.0, "finite": finite}


def test_the_watch_counts_those_in_a_row():
    settings = config.default()
    settings.on_nonfinite, settings.max_skipped_updates = "skip", 2
    watch = nonfinite.Watch(settings)
    good, bad = metrics(1.0, 1.0), metrics(float("nan"), 0.0)
    assert watch.follow(1, good, lambda: None) is None
    said = "The loss at step 2 is nan: the update was skipped (1 in a row)."
    assert watch.follow(2, bad, lambda: None) == said
    assert "(2 in a row)" in watch.follow(3, bad, lambda: None)
    assert watch.follow(4, good, lambda: None) is None
    assert "(1 in a row)" in watch.follow(5, bad, lambda: None)
    # A new start goes on with the count.
    watch = nonfinite.Watch(settings, watch.skipped_in_a_row)
    assert "(2 in a row)" in watch.follow(6, bad, lambda: None)
    with pytest.raises(UserError, match=r"at step 7 is nan, and 2 updates before it were skipped"):
        watch.follow(7, bad, lambda: 5)


def test_the_watch_stops_a_run_that_does_not_skip():
    watch = nonfinite.Watch(config.default())
    with pytest.raises(UserError, match=r"step 3 is inf; no checkpoint.*on_nonfinite=skip"):
        watch.follow(3, metrics(float("inf"), 0.0), lambda: None)
