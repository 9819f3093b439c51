"""Adversarial perturbations of a linear network, whose worst direction is an eigenvector."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import adversarial, byol, models, parallel

BATCH, NORM = 8, 0.02
ITERATIONS = (1, 2, 20)


class Linear(nn.Module):
    """A matrix, over all values of a view."""

    features: int = 5

    @nn.compact
    def __call__(self, view, train=False):
        view = jnp.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(view)], 1)
        return nn.Dense(self.features, use_bias=False)(view)


def two_views(key, example):
    """An array and a matrix, changed a little by the key."""
    keys = jax.random.split(key)
    return tuple(
        jax.tree.map(lambda x, k=k: x + 0.3 * jax.random.normal(k, x.shape), example) for k in keys
    )


def make(iterations=1, head=None, axis_name=None):
    return byol.make_learner(
        Linear(),
        two_views,
        lambda x: x,
        optax.sgd(0.5),
        lambda step: 0.9,
        projector=head or Linear(),
        predictor=head or Linear(),
        perturb=adversarial.perturb(NORM, iterations),
        axis_name=axis_name,
    )


def make_batch():
    rng = np.random.default_rng(0)
    examples = {"a": rng.normal(size=(BATCH, 3)), "b": rng.normal(size=(BATCH, 2, 3))}
    examples = jax.tree.map(np.float32, examples)
    return byol.Batch(examples, None, np.arange(BATCH, dtype=np.int32))


def flat(view):
    """(batch, values) in float64."""
    return np.concatenate([np.float64(x).reshape(len(x), -1) for x in jax.tree.leaves(view)], 1)


def changed(learner, state, batch):
    """The views of a batch, and what `learner.perturb` makes of them."""
    key = byol.step_key(state)
    views = byol.augment_batch(learner, key, batch)
    keys = [jax.random.fold_in(key, byol.NETWORK_KEYS + i) for i in range(2)]
    params, stats = state.online_params, state.online_stats
    return views, learner.perturb(learner, params, stats, views, keys, batch.positions)


def divergence(matrix, view, moved):
    """2 - 2 cos of the predictions, of each row."""
    q, moved = view @ matrix, moved @ matrix
    cosine = (q * moved).sum(-1) / np.linalg.norm(q, axis=-1) / np.linalg.norm(moved, axis=-1)
    return 2 - 2 * cosine


def hessian(matrix, view):
    """Half the second derivatives of the divergence of one example at no perturbation.

    With q = v W and its unit vector u, a small r turns u by (I - u u^T) W^T r / |q|.
    """
    q = view @ matrix
    unit = q / np.linalg.norm(q)
    turn = (np.eye(len(q)) - np.outer(unit, unit)) @ matrix.T / np.linalg.norm(q)
    return turn.T @ turn


@pytest.fixture(scope="module")
def start():
    return byol.init(make(), 0, make_batch())


@pytest.fixture(scope="module")
def matrix(start):
    """The online network as one matrix."""
    parts = (start.online_params[part] for part in ("encoder", "projector", "predictor"))
    return functools.reduce(np.matmul, (np.float64(part["Dense_0"]["kernel"]) for part in parts))


@pytest.fixture(scope="module")
def perturbed(start):
    """A function: state and batch -> clean views, and those after each of ITERATIONS."""

    @jax.jit
    def all_views(state, batch):
        views = [changed(make(iterations), state, batch) for iterations in ITERATIONS]
        return views[0][0], [seen for _, seen in views]

    return all_views


@pytest.fixture(scope="module")
def perturbations(start, perturbed):
    """Float64 (view, iterations, batch, values), and the clean views (view, batch, values)."""
    views, seen = perturbed(start, make_batch())
    clean = np.stack([flat(view) for view in views])
    return np.stack([[flat(v) for v in pair] for pair in seen], 1) - clean[:, None], clean


def test_each_iteration_multiplies_by_the_hessian(matrix, perturbations):
    r, clean = perturbations
    hessians = np.stack([[hessian(matrix, row) for row in view] for view in clean])
    np.testing.assert_allclose(np.linalg.norm(r, axis=-1), NORM, rtol=1e-4)
    once, twice, often = r.transpose(1, 0, 2, 3)
    want = np.einsum("vnij,vnj->vni", hessians, once)
    want *= NORM / np.linalg.norm(want, axis=-1, keepdims=True)
    np.testing.assert_allclose(twice, want, atol=0.01 * NORM)  # as the step is finite
    worst = np.linalg.eigh(hessians)[1][..., -1]
    np.testing.assert_allclose(np.abs((worst * often).sum(-1)), NORM, rtol=0.01)
    assert (np.abs((worst * once).sum(-1)) < 0.95 * NORM).any()
    assert np.abs(once[0] - once[1]).max() > 0.1 * NORM  # each view has its own


def test_the_prediction_moves_more_than_in_random_directions(matrix, perturbations):
    def moves(r):  # in both directions, because steps that are not tiny differ
        return (divergence(matrix, clean, clean + r) + divergence(matrix, clean, clean - r)) / 2

    r, clean = perturbations
    others = np.random.default_rng(1).normal(size=(500, *clean.shape))
    others = moves(others * NORM / np.linalg.norm(others, axis=-1, keepdims=True))
    assert (moves(r[:, 0]) > others.mean(0)).all()
    assert (moves(r[:, -1]) > others.max(0)).all()


def test_each_example_is_perturbed_alone(start, perturbed):
    batch = make_batch()
    order = np.array([5, 2, 7, 0, 1, 3, 6, 4])
    want, got = perturbed(start, batch), perturbed(start, jax.tree.map(lambda x: x[order], batch))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b[order], atol=1e-5)


def test_a_network_that_cannot_be_moved_sees_clean_views(start, perturbed):
    zero = start._replace(online_params=jax.tree.map(jnp.zeros_like, start.online_params))
    clean, seen = perturbed(zero, make_batch())
    for views in seen:
        jax.tree.map(np.testing.assert_array_equal, views, clean)


def test_to_the_gradient_the_perturbation_is_a_constant():
    """The loss, its gradient and the statistics are those of the perturbed views as data."""
    learner = make(head=models.MLP(8, 5))  # with batch norm
    state, batch = byol.init(learner, 0, make_batch()), make_batch()

    def grads(learner, state):
        gradient = jax.value_and_grad(byol.loss_fn, has_aux=True)
        return gradient(state.online_params, learner, state, batch)

    @jax.jit
    def both(state):
        _, seen = changed(learner, state, batch)
        as_data = dataclasses.replace(learner, perturb=lambda *_: seen)
        clean = dataclasses.replace(learner, perturb=None)
        return [grads(each, state) for each in (learner, as_data, clean)]

    got, want, clean = both(state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    (loss, ((online_stats, target_stats), _)), _ = got
    (clean_loss, ((clean_stats, clean_target_stats), _)), _ = clean
    assert loss > clean_loss + 1e-4
    jax.tree.map(np.testing.assert_array_equal, target_stats, clean_target_stats)
    assert not np.allclose(*(s["projector"]["bn1"]["mean"] for s in (online_stats, clean_stats)))


def test_one_device_equals_four():
    """With batch norm, through which examples of all devices depend on each other."""
    one, four = (
        make(head=models.MLP(8, 5, axis_name=axis_name), axis_name=axis_name)
        for axis_name in (None, parallel.AXIS)
    )
    start = byol.init(one, 0, make_batch())
    want, _ = jax.jit(functools.partial(byol.update, one))(start, make_batch())
    batch = parallel.device_put_batch(make_batch())
    state, *_ = parallel.update(four)(parallel.replicate(start), batch)
    for a, b in zip(jax.tree.leaves(parallel.local(state)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
