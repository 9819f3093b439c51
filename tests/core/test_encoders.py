"""BYOL with a ViT: the same updates on one device and on two, and what is frozen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from byol_jax import byol, parallel
from byol_jax.runs import build
from byol_jax.runs.resolve import resolve

BATCH, STEPS = 8, 3
SETTINGS = {
    **{"name": "vit_ti", "width": 16, "heads": 2, "depth": 2, "patch_size": 4},
    **{"drop_path": 0.5, "freeze_patch_embedding": True},
}


def make(axis_name):
    config = tiny_config()
    config.encoder.update(dict.fromkeys(("channels", "features")))
    config.encoder.update(SETTINGS)
    # Not Adam, which makes large steps of gradients that are nothing but rounding.
    config.optimizer.name, config.optimizer.weight_decay = "sgd", 0.5
    config, _ = resolve(config)
    return build.make_learner(config, lambda step: 0.03, 6, 3, axis_name)


def make_batch(step):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (BATCH, 2, 16, 16, 1), np.uint8)
    labels = rng.integers(0, 3, BATCH).astype(np.int32)
    return byol.Batch(images, labels, np.arange(BATCH, dtype=np.int32))


@pytest.fixture(scope="module")
def trained():
    """The first state, and the states and metrics after three updates on one device and on two."""
    one, two = (make(axis) for axis in (None, parallel.AXIS))
    first = byol.init(one, 5, make_batch(0))
    # An initial class token of about 1e-6 has gradients that are noise, or huge.
    enlarge = functools.partial(jax.tree_util.tree_map_with_path, enlarged)
    first = first._replace(
        online_params=enlarge(first.online_params), target_params=enlarge(first.target_params)
    )
    update = jax.jit(functools.partial(byol.update, one))
    on_two = jax.pmap(
        functools.partial(byol.update, two),
        parallel.AXIS,
        devices=jax.devices()[:2],
        in_axes=(None, 0),
    )
    state, replicas = first, first
    for step in range(STEPS):
        batch = make_batch(step)
        state, metrics = update(state, batch)
        rows = jax.tree.map(lambda x: x.reshape(2, BATCH // 2, *x.shape[1:]), batch)
        replicas, replica_metrics = jax.tree.map(lambda x: x[0], on_two(replicas, rows))
    return first, (state, metrics), (replicas, replica_metrics)


def enlarged(path, leaf):
    return leaf + jnp.linspace(0.1, 1, len(leaf)) if path[-1].key == "class_token" else leaf


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_one_device_and_two_give_the_same_updates(trained):
    _, (one, metrics), (two, replica_metrics) = trained
    assert np.isfinite(metrics["loss"]) and int(one.step) == STEPS
    one, two = named(one.online_params), named(two.online_params)
    assert one.keys() == two.keys() and len(one) > 20
    for name, want in one.items():
        scale = max(np.abs(want).max(), 0.1)  # rounding alone moves biases before a norm
        np.testing.assert_allclose(two[name], want, rtol=0, atol=1e-4 * scale, err_msg=name)
    for key, want in metrics.items():
        np.testing.assert_allclose(replica_metrics[key], want, rtol=1e-4, err_msg=key)


def test_all_but_frozen_parameters_are_trained(trained):
    first, (state, _), _ = trained
    before, after = named(first.online_params), named(state.online_params)
    same = {leaf for leaf in before if np.array_equal(before[leaf], after[leaf])}
    frozen = {leaf for leaf in before if "patch_embedding" in leaf}
    assert same == frozen and len(frozen) == 2
    target = named(state.target_params)
    for leaf in frozen:
        np.testing.assert_allclose(target[leaf], before[leaf], rtol=1e-6)


def test_maps_for_users_are_not_part_of_the_state(trained):
    first, (state, _), _ = trained
    assert not any("features" in leaf or "block1" in leaf for leaf in named(state.online_stats))
    assert not state.online_stats.get("encoder") and not first.online_stats.get("encoder")
