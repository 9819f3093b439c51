"""Equality with the authors' implementation: five updates, their ResNet-18, their augmentations."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import replay_reference

from byol_jax import byol, models, optim
from byol_jax.augment import image as image_augment
from byol_jax.export.convert import reference

SCRIPT = Path(replay_reference.__file__)
METRICS = {"loss", "repr_loss", "classif_loss", "tau", "learning_rate"}
GROUPS = ["online_params", "target_params", "online_state", "target_state", "momentum", "eval"]


@pytest.fixture(scope="module")
def errors(reference_data):
    """What replay_reference.py prints for the trajectory, with two perturbed replays.

    Compiled as users' programs are, without the flags of the tests.
    """
    path = reference_data / "trajectory.npz"
    command = [sys.executable, SCRIPT, path, "--devices=2", "--perturb=2"]
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_metrics_equal_the_authors(errors):
    assert set(errors["log"]) == METRICS
    assert max(errors["log"].values()) < 1e-5


# The reference differs from itself, on one replica instead of two, by 2e-5.
@pytest.mark.parametrize("group", GROUPS)
def test_final_state_and_outputs_equal_the_authors(errors, group):
    assert errors[group]["error"] < 2e-4, errors[group]


def test_perturbed_replays_report_best_and_median(errors):
    perturbed = errors["perturbed"]
    assert set(perturbed) == METRICS | set(GROUPS)
    for name, found in perturbed.items():
        assert found["best"] <= found["median"] < 2e-4, name
    # The replays start from other parameters than the plain one, and from different ones.
    assert perturbed["online_params"]["best"] < perturbed["online_params"]["median"]
    assert perturbed["online_params"]["best"] != errors["online_params"]["error"]


def test_perturbed_parameters_differ_by_rounding():
    state = byol.State(*[None] * 7)._replace(
        online_params={"kernel": np.linspace(-2, 2, 1000, dtype=np.float32)},
        target_params={"kernel": np.ones(1000, np.float32)},
    )
    got = replay_reference.perturb(state, np.random.default_rng(0))
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(got), strict=True):
        assert after.dtype == np.float32
        relative = (np.float64(after) - before) / before
        assert 1e-7 < relative.std() < 3e-7
        assert np.abs(relative).max() < 1e-6


def filled(kind, module, name, shape):
    """The reference's rule for arrays that are too large to store."""
    seed = zlib.crc32(f"{kind}|{module}|{name}".encode())
    g = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if kind == "params":
        if name == "w":
            return g * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        return 1 + 0.1 * g if name == "scale" else 0.1 * g
    if name == "counter":
        return np.int32(1000)
    return 1 + 0.1 * np.abs(g) if module.endswith("var_ema") else 0.1 * g


@pytest.fixture(scope="module")
def resnet18(reference_data):
    manifest = json.loads((reference_data / "resnet18_manifest.json").read_text())
    return {
        kind: {
            module: {name: filled(kind, module, name, s) for name, (s, _) in leaves.items()}
            for module, leaves in manifest[kind].items()
        }
        for kind in ("params", "state")
    }


def test_resnet18_gives_the_authors_outputs(reference_data, resnet18):
    params = reference.params(resnet18["params"])
    sizes = reference.architecture(params)
    assert sizes["encoder"] == {
        "name": "resnet18",
        "padding": "same",
        "first_shortcut": True,
        "width_multiplier": 1,
    }
    encoder = models.ResNet18(padding="same", first_shortcut=True)
    learner = byol.make_learner(
        encoder,
        image_augment.IMAGENET,
        image_augment.IMAGENET.preprocess,
        optim.lars(0.1),
        optim.target_decay(0.99, 1),
        num_classes=1000,
    )
    batch = byol.Batch(np.zeros((2, 2, 224, 224, 3), np.uint8), None, np.arange(2))
    state = jax.eval_shape(lambda: byol.init(learner, 0, batch))
    stats = reference.batch_stats(resnet18["state"])
    for ours, theirs in ((state.online_params, params), (state.online_stats, stats)):
        assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
    with np.load(reference_data / "resnet18_eval.npz") as want:
        rng = np.random.RandomState(int(want["image_seed"]))
        images = rng.randint(0, 256, (2, 224, 224, 3)).astype(np.uint8)
        state = state._replace(online_params=params, online_stats=stats)
        got = jax.jit(lambda s, x: byol.infer(learner, s, x))(state, images)
        for name in ("projection", "prediction", "logits"):
            error = np.abs(getattr(got, name) - want[name]).max() / np.abs(want[name]).max()
            assert error < 1e-4, (name, error)


DRAWS = 1280  # of each image, as in the reference's statistics


@pytest.fixture(scope="module")
def drawn(reference_data):
    """The reference's statistics of both views, and our draws of these views, in 0..1."""
    with np.load(reference_data / "augment.npz") as file:
        values = dict(file)
    policy = image_augment.Policy(
        image_augment.IMAGENET.view1, image_augment.IMAGENET.view2, (0.0,) * 3, (1.0,) * 3
    )
    count = len(values["images"])
    flips = np.random.default_rng(0).random((2, DRAWS, count)) < 0.5  # as in the input pipeline

    @jax.jit
    def draw(key, flip):
        pair = jnp.stack([values["images"]] * 2, 1)
        pair = jnp.where(flip.T[:, :, None, None, None], pair[:, :, :, ::-1], pair)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        return jnp.stack(jax.vmap(policy)(keys, pair))

    keys = jax.random.split(jax.random.key(0), DRAWS)
    draws = [np.asarray(draw(keys[i], flips[:, i])) for i in range(DRAWS)]
    return values, np.stack(draws, axis=2)  # (2, image, draw, height, width, channel)


@pytest.mark.parametrize("view", [1, 2])
def test_the_complete_policy_has_the_authors_statistics(drawn, view):
    values, draws = drawn
    draws = draws[view - 1]
    want = {k.removeprefix(f"policy_view{view}_"): v for k, v in values.items()}
    # The difference of two samples has sqrt(2) times the sampling error of one. The bound is five
    # of those, because it holds for the largest of some 24,000 (dependent) pixels.
    error = np.sqrt(2 / DRAWS) * want["std"]
    assert np.all(np.abs(draws.mean(1) - want["mean"]) < 5 * error)
    deviation = np.abs(draws - draws.mean(1, keepdims=True)) ** 2
    error = np.sqrt(2 * deviation.var(1) / DRAWS) / (2 * draws.std(1))
    assert np.all(np.abs(draws.std(1) - want["std"]) < 5 * error)
    gray = np.ptp(draws, axis=-1).max((-2, -1)) < 1e-6
    p, n = float(want["gray_fraction"]), gray.size
    assert abs(gray.mean() - p) < 5 * np.sqrt(2 * p * (1 - p) / n)
    energy = np.abs(np.diff(draws, axis=2)).mean((2, 3, 4))
    sampling_errors = (energy.mean(1) - want["lap_energy"]) / (np.sqrt(2 / DRAWS) * energy.std(1))
    assert np.all(np.abs(sampling_errors) < 5)
    # The mean over all images is a sharper test.
    assert abs(sampling_errors.sum() / np.sqrt(len(sampling_errors))) < 4
