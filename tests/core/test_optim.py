"""Optimisers, their masks and the schedules, against plain numpy and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import optim


def tree(rng):
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)), "bias": rng.normal(size=4)},
        "bn": {"scale": rng.normal(size=4), "bias": rng.normal(size=4)},
        "attention": {"bias": rng.normal(size=(2, 3))},
    }


def as_float32(t):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), t)


def numpy_lars(param, gradient, momentum, rate, adapted, clip, decay=0.01, mu=0.9, eta=0.02):
    if adapted:
        gradient = gradient + decay * param
        local_rate = eta * np.linalg.norm(param) / np.linalg.norm(gradient)
        if clip:  # the smaller of the two rates is applied
            local_rate = min(local_rate, rate) / rate if rate else 1
        gradient = gradient * local_rate
    momentum = mu * momentum + gradient
    return param - rate * momentum, momentum


@pytest.mark.parametrize("clip", [False, True])
def test_lars_is_the_plain_formula(clip):
    rng = np.random.default_rng(0)
    params = tree(rng)
    # With and without clipping.
    gradients = [jax.tree.map(lambda g, s=s: s * g, tree(rng)) for s in (1, 1, 0.01, 1, 0.01)]
    schedule = optim.warmup_cosine(0.5, 2, 6)
    optimizer = optim.lars(schedule, weight_decay=0.01, trust_coefficient=0.02, clip=clip)
    ours = as_float32(params)
    state = optimizer.init(ours)
    momentum = jax.tree.map(np.zeros_like, params)
    for step, gradient in enumerate(gradients):
        updates, state = optimizer.update(as_float32(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        rate = float(schedule(step))
        for layer, leaves in params.items():
            for name in leaves:
                params[layer][name], momentum[layer][name] = numpy_lars(
                    params[layer][name],
                    gradient[layer][name],
                    momentum[layer][name],
                    rate,
                    adapted=name == "kernel",
                    clip=clip,
                )
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_the_trust_ratio_equals_that_of_optax():
    """The same bits, also where a norm is 0, and the same state, which is part of checkpoints."""
    rng = np.random.default_rng(0)
    updates, params = as_float32(tree(rng)), as_float32(tree(rng))
    updates["none"], params["none"] = jnp.zeros((2, 3)), jnp.ones((2, 3))
    updates["new"], params["new"] = jnp.ones((2, 3)), jnp.zeros((2, 3))
    ours = optim.scale_by_trust_ratio(1e-3)
    theirs = optax.scale_by_trust_ratio(trust_coefficient=1e-3)
    assert ours.init(params) == theirs.init(params)
    got, state = ours.update(updates, ours.init(params), params)
    want, _ = theirs.update(updates, theirs.init(params), params)
    assert state == theirs.init(params)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("clip", [False, True])
def test_lars_computes_each_norm_once(clip):
    params = as_float32(tree(np.random.default_rng(0)))
    optimizer = optim.lars(0.1, clip=clip)
    jaxpr = str(jax.make_jaxpr(optimizer.update)(params, optimizer.init(params), params))
    adapted = sum(jax.tree.leaves(optim.is_adapted(params)))
    assert jaxpr.count("name=norm") == 2 * adapted


def test_the_first_update_has_learning_rate_zero():
    params = as_float32(tree(np.random.default_rng(0)))
    optimizer = optim.lars(optim.warmup_cosine(1.0, 3, 10))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert all(float(jnp.abs(u).max()) == 0 for u in jax.tree.leaves(updates))


def test_only_kernels_are_adapted_and_decayed():
    mask = optim.is_adapted(as_float32(tree(np.random.default_rng(0))))
    assert mask == {
        "conv": {"kernel": True, "bias": False},
        "bn": {"scale": False, "bias": False},
        "attention": {"bias": False},
    }


@pytest.mark.parametrize("make", [optim.adamw, optim.sgd])
def test_adamw_and_sgd_decay_kernels_only(make):
    params = as_float32(tree(np.random.default_rng(0)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make(1.0, weight_decay=0.1)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(
        updates["conv"]["kernel"], -0.1 * params["conv"]["kernel"], rtol=1e-6
    )
    assert float(jnp.abs(updates["bn"]["scale"]).max()) == 0


def test_sgd_has_momentum():
    params = {"kernel": jnp.ones((2, 2))}
    optimizer = optim.sgd(0.1, weight_decay=0.0, momentum=0.5)
    state = optimizer.init(params)
    gradient = {"kernel": jnp.ones((2, 2))}
    first, state = optimizer.update(gradient, state, params)
    second, state = optimizer.update(gradient, state, params)
    np.testing.assert_allclose(first["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(second["kernel"], -0.15, rtol=1e-6)


def test_warmup_constant():
    schedule = optim.warmup_constant(2.0, 10, 80, 100)
    rates = np.array([float(schedule(step)) for step in range(101)])
    np.testing.assert_allclose(rates[:11], 2.0 * np.arange(11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[10:81], 2.0, rtol=1e-6)
    np.testing.assert_allclose(rates[80:], 2 - 2 * np.sqrt(np.arange(21) / 20), atol=1e-6)
    # What comes before the cool-down does not depend on the end.
    longer = optim.warmup_constant(2.0, 10, 160, 200)
    assert [float(longer(step)) for step in range(81)] == rates[:81].tolist()
    assert float(optim.warmup_constant(2.0, 0, 5, 5)(0)) == 2.0


def test_warmup_cosine():
    schedule = optim.warmup_cosine(2.0, 10, 110)
    steps = np.arange(0, 111)
    want = np.where(
        steps < 10, 2.0 * steps / 10, 2.0 * (1 + np.cos(np.pi * (steps - 10) / 100)) / 2
    )
    np.testing.assert_allclose([schedule(s) for s in steps], want, atol=1e-6)


def test_target_decay():
    tau = optim.target_decay(0.97, 200)
    steps = np.arange(0, 201)
    want = 1 - (1 - 0.97) * (np.cos(np.pi * steps / 200) + 1) / 2
    np.testing.assert_allclose([tau(s) for s in steps], want, atol=2e-7)
    assert float(tau(0)) == pytest.approx(0.97, abs=1e-7)
    assert float(tau(200)) == 1.0
    assert float(tau(300)) == 1.0


def test_schedules_equal_the_authors(reference_data):
    values = np.load(reference_data / "augment.npz")
    steps = values["steps"]
    rates = optim.warmup_cosine(0.3 * 4096 / 256, 100, 1000)
    taus = optim.target_decay(0.99, 1000)
    np.testing.assert_allclose(
        [rates(s) for s in steps], values["lr_b4096_base0.3_warm100_total1000"], atol=2e-6
    )
    np.testing.assert_allclose(
        [taus(s) for s in steps], values["tau_base0.99_total1000"], atol=2e-7
    )


@pytest.mark.parametrize("make", [optim.adamw, optim.sgd, optim.lars])
def test_frozen_parameters_stay_and_others_are_updated_as_before(make):
    """Even decay leaves them alone, though their gradient is not zero."""
    rng = np.random.default_rng(0)
    block = {"kernel": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)}
    params = {"encoder": {"stem": block, "stem2": block}, "projector": {"stem": block}}
    params = jax.tree.map(jnp.float32, params)
    plain = make(0.1, weight_decay=0.5)
    frozen = optim.freeze(plain, ("encoder", "stem"), ("projector", "stem", "bias"))
    updates = []
    for optimizer in (plain, frozen):
        grads, state = jax.tree.map(jnp.ones_like, params), optimizer.init(params)
        updates.append(optimizer.update(grads, state, params)[0])
    want, got = updates
    assert not any(np.any(x) for x in jax.tree.leaves(got["encoder"]["stem"]))
    assert np.all(want["encoder"]["stem"]["kernel"]) and np.all(want["projector"]["stem"]["bias"])
    assert not np.any(got["projector"]["stem"]["bias"])
    for path in (("encoder", "stem2"), ("projector", "stem")):
        for leaf in ("kernel", "bias") if path[0] == "encoder" else ("kernel",):
            np.testing.assert_array_equal(got[path[0]][path[1]][leaf], want[path[0]][path[1]][leaf])


def test_positions_of_a_vit_are_not_decayed():
    params = {"position_embedding": jnp.ones((5, 4)), "class_token": jnp.ones(4)}
    assert optim.is_adapted(params) == {"position_embedding": False, "class_token": False}
