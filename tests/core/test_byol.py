"""The algorithm: loss, gradients, the order of an update, the target, and randomness."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import byol, models, objectives, optim
from byol_jax.augment import image as image_augment
from byol_jax.train import health

SHAPE = (4, 4, 3)
CLASSES = 5
PLAIN = image_augment.View(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, solarize_prob=0.0)


class Encoder(nn.Module):
    """Batch norm of each channel's mean, then a dense layer."""

    @nn.compact
    def __call__(self, images, train):
        x = jnp.mean(images, axis=(1, 2))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        return nn.Dense(6)(x)


def make(tau=0.9, rate=0.5, policy=None, num_classes=CLASSES, encoder=None, **kwargs):
    policy = policy or image_augment.Policy(PLAIN, PLAIN, (0.5,) * 3, (0.25,) * 3)
    return byol.make_learner(
        encoder or Encoder(),
        policy,
        policy.preprocess,
        optax.sgd(rate),
        tau if callable(tau) else lambda step: jnp.asarray(tau, jnp.float32),
        num_classes=num_classes,
        **({"projector": models.MLP(8, 4), "predictor": models.MLP(8, 4)} | kwargs),
    )


def run(network, params, stats, view):
    """Outputs and new statistics of one pass in training mode."""
    keys, positions = [jax.random.key(0)], jnp.arange(len(view))
    (outputs,), stats = byol.apply(network, params, stats, [view], keys, positions)
    return outputs, stats


WITHOUT_TARGET = {
    "target": objectives.NoTarget(),
    "objective": objectives.without_target(byol.byol_objective),
}


def make_batch(seed=0, count=8, labels=True):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 2, *SHAPE), np.uint8)
    labels = rng.integers(0, CLASSES, count).astype(np.int32) if labels else None
    return byol.Batch(images, labels, np.arange(count, dtype=np.int32))


@pytest.fixture(scope="module")
def learner():
    return make()


@pytest.fixture(scope="module")
def start(learner):
    """A state whose two networks differ, as they do after some steps."""
    state = byol.init(learner, 1, make_batch())
    noise = iter(jax.random.split(jax.random.key(7), 100))
    moved = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), state.target_params
    )
    return state._replace(target_params=moved, step=jnp.asarray(3, jnp.int32))


@pytest.fixture(scope="module")
def after(learner, start):
    return jax.jit(functools.partial(byol.update, learner))(start, make_batch())


# One pass in training mode, in plain numpy and float64.


def numpy_norm(x, p, stats):
    mean, var = x.mean(0), x.var(0)
    new, weight = {}, 0.1  # Flax's batch norm
    if "count" in stats:  # ours, whose weights sum to one
        new["count"] = stats["count"] + 1
        weight /= 1 - 0.9 ** new["count"]
    new["mean"] = stats["mean"] + weight * (mean - stats["mean"])
    new["var"] = stats["var"] + weight * (var - stats["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"], new


def numpy_head(x, p, stats):
    x = x @ p["dense1"]["kernel"] + p["dense1"]["bias"]
    x, new = numpy_norm(x, p["bn1"], stats["bn1"])
    return np.maximum(x, 0) @ p["dense2"]["kernel"], {"bn1": new}


def numpy_forward(p, stats, images):
    """Embedding, projection, prediction (online only) and new statistics of uint8 images."""
    x = ((images / 255 - 0.5) / 0.25).mean((1, 2))
    new = {}
    x, norm = numpy_norm(x, p["encoder"]["BatchNorm_0"], stats["encoder"]["BatchNorm_0"])
    new["encoder"] = {"BatchNorm_0": norm}
    y = x @ p["encoder"]["Dense_0"]["kernel"] + p["encoder"]["Dense_0"]["bias"]
    z, new["projector"] = numpy_head(y, p["projector"], stats["projector"])
    q = None
    if "predictor" in p:
        q, new["predictor"] = numpy_head(z, p["predictor"], stats["predictor"])
    return y, z, q, new


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.fixture(scope="module")
def expected(start):
    """Losses and running statistics of one update, computed in numpy."""
    batch = make_batch()
    online, target = in_float64(start.online_params), in_float64(start.target_params)
    stats, target_stats = in_float64(start.online_stats), in_float64(start.target_stats)
    y1, _, q1, stats = numpy_forward(online, stats, batch.examples[:, 0])
    _, _, q2, stats = numpy_forward(online, stats, batch.examples[:, 1])
    _, z1, _, target_stats = numpy_forward(target, target_stats, batch.examples[:, 0])
    _, z2, _, target_stats = numpy_forward(target, target_stats, batch.examples[:, 1])

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    distance = lambda q, z: ((unit(q) - unit(z)) ** 2).sum(1)  # noqa: E731
    logits = y1 @ online["probe"]["kernel"] + online["probe"]["bias"]
    log_z = np.log(np.exp(logits).sum(1))
    return {
        "byol_loss": (distance(q1, z2) + distance(q2, z1)).mean(),
        "probe_loss": (log_z - logits[np.arange(8), batch.labels]).mean(),
        "probe_train_top1": (logits.argmax(1) == batch.labels).mean(),
        "online_stats": stats,
        "target_stats": target_stats,
    }


def close(got, want, **tolerance):
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, **tolerance)


def test_losses_are_the_plain_formula(after, expected):
    _, metrics = after
    for key in ("byol_loss", "probe_loss", "probe_train_top1"):
        np.testing.assert_allclose(metrics[key], expected[key], rtol=2e-5)
    np.testing.assert_allclose(
        metrics["loss"], expected["byol_loss"] + expected["probe_loss"], rtol=2e-5
    )


def test_views_pass_separately_and_the_target_has_its_own_statistics(after, expected):
    state, _ = after
    close(state.online_stats, expected["online_stats"], atol=2e-6)
    close(state.target_stats, expected["target_stats"], atol=2e-6)


def test_regression_loss_is_two_minus_two_cosines():
    rng = np.random.default_rng(0)
    q, z = rng.normal(size=(2, 16, 7)).astype(np.float32)
    cosine = (q * z).sum(1) / np.linalg.norm(q, axis=1) / np.linalg.norm(z, axis=1)
    np.testing.assert_allclose(byol.regression_loss(q, z), 2 - 2 * cosine, atol=1e-6)
    np.testing.assert_allclose(byol.regression_loss(q, 3 * q), 0, atol=1e-6)
    np.testing.assert_allclose(byol.regression_loss(q, -q), 4, atol=1e-6)


def test_regression_loss_of_zero_vectors_has_a_finite_gradient():
    zeros, ones = jnp.zeros((1, 3)), jnp.ones((1, 3))
    gradient = jax.grad(lambda q: byol.regression_loss(q, ones).sum())(zeros)
    assert np.all(np.isfinite(gradient))


def gradients(learner, state, batch, field):
    """Gradient of the loss by one field of the state."""

    def loss(params):
        s = state._replace(**{field: params})
        return byol.loss_fn(s.online_params, learner, s, batch)[0]

    return jax.grad(loss)(getattr(state, field))


def test_no_gradient_enters_the_target(learner, start):
    for leaf in jax.tree.leaves(gradients(learner, start, make_batch(), "target_params")):
        np.testing.assert_array_equal(leaf, 0)


def test_the_probe_loss_moves_the_probe_alone(learner, start):
    with_labels = gradients(learner, start, make_batch(), "online_params")
    without = gradients(learner, start, make_batch(labels=False), "online_params")
    for part in ("encoder", "projector", "predictor"):
        close(with_labels[part], without[part], rtol=1e-5, atol=1e-7)
    assert float(jnp.abs(with_labels["probe"]["kernel"]).max()) > 1e-3
    np.testing.assert_array_equal(without["probe"]["kernel"], 0)


def test_gradients_equal_differences_of_the_numpy_loss(learner, start):
    """Central differences of the numpy loss along random directions of the online parameters."""
    batch = make_batch(labels=False)
    gradient = in_float64(gradients(learner, start, batch, "online_params"))
    target = in_float64(start.target_params)
    stats, target_stats = in_float64(start.online_stats), in_float64(start.target_stats)
    z1 = numpy_forward(target, target_stats, batch.examples[:, 0])[1]
    z2 = numpy_forward(target, target_stats, batch.examples[:, 1])[1]

    def loss(params):
        total = 0
        for view, z in ((batch.examples[:, 0], z2), (batch.examples[:, 1], z1)):
            q = numpy_forward(params, stats, view)[2]
            cosine = (q * z).sum(1) / np.linalg.norm(q, axis=1) / np.linalg.norm(z, axis=1)
            total += (2 - 2 * cosine).mean()
        return total

    params = in_float64(start.online_params)
    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        ahead = jax.tree.map(lambda x, d: x + 1e-5 * d, params, direction)
        behind = jax.tree.map(lambda x, d: x - 1e-5 * d, params, direction)
        slope = (loss(ahead) - loss(behind)) / 2e-5
        dots = jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(dots)), slope, rtol=2e-4)


def test_the_online_network_steps_down_its_gradient(learner, start, after):
    state, metrics = after
    gradient = gradients(learner, start, make_batch(), "online_params")
    want = jax.tree.map(lambda p, g: p - 0.5 * g, start.online_params, gradient)
    close(state.online_params, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-5)


def test_the_target_follows_the_new_online_parameters(start, after):
    state, _ = after
    followed = {k: state.online_params[k] for k in ("encoder", "projector")}
    want = jax.tree.map(lambda xi, th: 0.9 * xi + 0.1 * th, start.target_params, followed)
    close(state.target_params, want, rtol=1e-6, atol=1e-7)


def test_the_target_is_encoder_and_projector_and_starts_as_a_copy(learner):
    state = byol.init(learner, 0, make_batch())
    assert set(state.online_params) == {"encoder", "projector", "predictor", "probe"}
    assert set(state.target_params) == {"encoder", "projector"} == set(state.target_stats)
    close(
        state.target_params, {k: state.online_params[k] for k in ("encoder", "projector")}, rtol=0
    )


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_ema_end_points(start, tau):
    got = byol.update_target(start.target_params, start.online_params, jnp.asarray(tau))
    want = start.target_params if tau else {k: start.online_params[k] for k in got}
    close(got, want, rtol=0)


def test_tau_belongs_to_the_step_before_the_update(start):
    tau = optim.target_decay(0.5, 10)
    state, metrics = jax.jit(functools.partial(byol.update, make(tau=tau)))(start, make_batch())
    np.testing.assert_allclose(metrics["tau"], tau(3), rtol=1e-6)
    followed = {k: state.online_params[k] for k in ("encoder", "projector")}
    want = jax.tree.map(
        lambda xi, th: tau(3) * xi + (1 - tau(3)) * th, start.target_params, followed
    )
    close(state.target_params, want, rtol=1e-5, atol=1e-6)


def test_step_counts_and_seed_stays(start, after):
    state, _ = after
    assert int(state.step) == int(start.step) + 1 and int(state.seed) == 1


def test_without_labels_or_classes_there_is_no_probe():
    learner = make(num_classes=None)
    state = byol.init(learner, 0, make_batch())
    assert "probe" not in state.online_params
    _, metrics = byol.update(learner, state, make_batch(labels=False))
    assert "probe_loss" not in metrics
    np.testing.assert_allclose(metrics["loss"], metrics["byol_loss"])


def test_views_follow_from_seed_step_and_position(start):
    batch = make_batch()
    learner = make(policy=image_augment.IMAGENET)

    def draw(state, batch):
        return byol.augment_batch(learner, byol.step_key(state), batch)

    first, _ = draw(start, batch)
    again, _ = draw(start, batch)
    np.testing.assert_array_equal(first, again)
    for other in (
        start._replace(step=start.step + 1),
        start._replace(seed=start.seed + 1),
    ):
        assert np.abs(np.asarray(draw(other, batch)[0]) - first).max() > 0.1
    moved = batch._replace(positions=batch.positions + 8)
    assert np.abs(np.asarray(draw(start, moved)[0]) - first).max() > 0.1


def test_embed_is_the_encoder_in_evaluation_mode(learner, after):
    state, _ = after
    images = make_batch(3).examples[:, 0]
    p, s = in_float64(state.online_params["encoder"]), in_float64(state.online_stats["encoder"])
    x = ((images / 255 - 0.5) / 0.25).mean((1, 2))
    norm, stats = p["BatchNorm_0"], s["BatchNorm_0"]
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
    want = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    np.testing.assert_allclose(byol.embed(learner, state, images), want, rtol=1e-4, atol=1e-5)


def test_health_features_are_of_the_online_network_in_training_mode(learner, after):
    batch, (state, _) = make_batch(), after
    embedding, projection = health.features(learner, state, batch)
    params, stats = in_float64(state.online_params), in_float64(state.online_stats)
    y, z, *_ = numpy_forward(params, stats, batch.examples[:, 0])
    np.testing.assert_allclose(embedding, y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(projection, z, rtol=1e-4, atol=1e-5)


class NoTrainArgument(nn.Module):
    """An encoder with neither batch statistics nor a training mode."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6)(x.reshape(len(x), -1))


def test_any_flax_module_is_an_encoder():
    learner = make(encoder=NoTrainArgument())
    state = byol.init(learner, 0, make_batch())
    state, metrics = byol.update(learner, state, make_batch())
    assert np.isfinite(metrics["loss"]) and "encoder" not in state.online_stats
    assert byol.embed(learner, state, make_batch().examples[:, 0]).shape == (8, 6)


class Maps(nn.Module):
    """An encoder without pooling."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (3, 3))(x)


class Pair(nn.Module):
    """An encoder that returns two arrays."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(len(x), -1)), x


@pytest.mark.parametrize(("encoder", "returned"), [(Maps(), r"\(2, 4, 4, 2\)"), (Pair(), "tuple")])
def test_an_encoder_must_return_one_vector_per_example(encoder, returned):
    message = rf"must return \(batch, features\), but returned {returned} .*mean over height"
    with pytest.raises(ValueError, match=message):
        byol.init(make(encoder=encoder), 0, make_batch())


class Training(nn.Module):
    """An encoder whose training mode has the name that Keras and PyTorch use."""

    def __call__(self, x, training=False):
        return x.reshape(len(x), -1)


class Deterministic(nn.Module):
    """An encoder whose training mode has the name that Flax's own modules use."""

    def __call__(self, x, *, deterministic=True):
        return x.reshape(len(x), -1)


@pytest.mark.parametrize(
    ("encoder", "name"), [(Training(), "training"), (Deterministic(), "deterministic")]
)
def test_an_encoder_with_another_name_for_train_is_refused(encoder, name):
    """It would stay in evaluation mode without a notice."""
    message = rf"{type(encoder).__name__} takes '{name}', .*replace it by 'train'"
    with pytest.raises(ValueError, match=message):
        byol.init(make(encoder=encoder), 0, make_batch())


class TrainAndDeterministic(Deterministic):
    """An encoder that takes `train`, and another mode besides."""

    def __call__(self, x, train, deterministic=False):
        return x.reshape(len(x), -1) * (2 if train else 1)


def test_an_encoder_receives_train():
    view = jnp.ones((3, 2))
    for train in (True, False):
        embedding = models.encode(TrainAndDeterministic(), view, train)
        np.testing.assert_array_equal(embedding, 2 * view if train else view)


def test_the_state_can_be_donated():
    learner = make()
    update = jax.jit(functools.partial(byol.update, learner), donate_argnums=0)
    state = byol.init(learner, 0, make_batch())
    for _ in range(2):
        state, _ = update(state, make_batch())
    assert int(state.step) == 2


def test_learner_is_what_stays_fixed(learner):
    with pytest.raises(dataclasses.FrozenInstanceError):
        learner.tau = None


# Ablations (section 5).


def test_without_a_predictor_the_projection_is_the_prediction():
    learner = make(predictor=None)
    state = byol.init(learner, 0, make_batch())
    assert set(state.online_params) == {"encoder", "projector", "probe"}
    outputs = byol.infer(learner, state, make_batch().examples[:, 0])
    np.testing.assert_array_equal(outputs.projection, outputs.prediction)


def test_without_a_target_network_both_branches_learn():
    learner = make(**WITHOUT_TARGET, num_classes=None)
    state = byol.init(learner, 0, make_batch())
    assert state.target_params == state.target_stats == {}
    batch = make_batch(labels=False)
    view1, view2 = byol.augment_batch(learner, byol.step_key(state), batch)

    def plain(params):
        one, stats = run(learner.online, params, state.online_stats, view1)
        two, _ = run(learner.online, params, stats, view2)
        cosine = lambda a, b: (a * b).sum(1) / jnp.sqrt((a**2).sum(1) * (b**2).sum(1))  # noqa: E731
        pairs = (one.prediction, two.projection), (two.prediction, one.projection)
        return sum(jnp.mean(2 - 2 * cosine(q, z)) for q, z in pairs)

    want, gradients = jax.value_and_grad(plain)(state.online_params)
    new, metrics = jax.jit(functools.partial(byol.update, learner))(state, batch)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, state.online_params, gradients)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        new.online_params,
        moved,
    )


@pytest.fixture(scope="module")
def outputs():
    """Random outputs of the online and of the target network for two views, and unit vectors."""
    rng = np.random.default_rng(0)
    q1, q2, z1, z2, t1, t2 = rng.normal(size=(6, 9, 5)).astype(np.float32)
    online = models.Outputs(None, z1, q1), models.Outputs(None, z2, q2)
    target = models.Outputs(None, t1), models.Outputs(None, t2)
    units = {
        name: np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True)
        for name, x in {"q1": q1, "q2": q2, "z1": z1, "z2": z2, "t1": t1, "t2": t2}.items()
    }
    return online, target, units


def test_without_target_regresses_own_projections_with_their_gradient(outputs):
    online, target, u = outputs
    objective = objectives.without_target(byol.byol_objective)
    want = (2 - 2 * (u["q1"] * u["z2"]).sum(1) + 2 - 2 * (u["q2"] * u["z1"]).sum(1)).mean()
    for ignored in (target, None):
        np.testing.assert_allclose(objective(online, ignored, None)[0], want, rtol=1e-5)

    def gradients(objective):
        def loss(projection):
            first = online[0]._replace(projection=projection)
            return objective((first, online[1]), target, None)[0]

        return jax.grad(loss)(online[0].projection)

    assert np.abs(gradients(objective)).max() > 1e-3
    np.testing.assert_array_equal(gradients(byol.byol_objective), 0)


def test_no_target_has_neither_parameters_nor_outputs():
    network = objectives.NoTarget()
    assert network.init(jax.random.key(0), jnp.ones((2, 3)), train=True) == {}
    keys = [jax.random.key(0)]
    (outputs,), stats = byol.apply(network, {}, {}, [None], keys, jnp.arange(2))
    assert outputs == models.Outputs(None, None) and stats == {}


# Gradient accumulation.


class NormFree(nn.Module):
    """An encoder without batch norm: no example depends on another."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(6)(jnp.mean(images, axis=(1, 2)))


class NormFreeHead(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(4)(nn.relu(nn.Dense(8)(x)))


def test_accumulated_micro_batches_give_the_update_of_the_complete_batch():
    batch = make_batch(count=12)
    results = []
    for steps in (1, 3):
        learner = make(
            policy=image_augment.IMAGENET,
            encoder=NormFree(),
            projector=NormFreeHead(),
            predictor=NormFreeHead(),
            accum_steps=steps,
        )
        state = byol.init(learner, 0, make_batch())
        results.append(jax.jit(functools.partial(byol.update, learner))(state, batch))
    (once, once_metrics), (parts, parts_metrics) = results
    assert int(parts.step) == 1  # one update: one learning rate, one movement of the target
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), once, parts)
    assert once_metrics.keys() == parts_metrics.keys()
    for name, value in once_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5, err_msg=name)


def test_batch_norm_sees_one_micro_batch_after_the_other():
    learner, batch = make(accum_steps=2), make_batch()
    state = byol.init(learner, 0, make_batch())
    updated, _ = jax.jit(functools.partial(byol.update, learner))(state, batch)
    assert updated.online_stats["projector"]["bn1"]["count"] == 4  # two views of two
    stats = in_float64(state.target_stats)
    for rows in (slice(0, 4), slice(4, 8)):
        for view in batch.examples.swapaxes(0, 1):
            *_, stats = numpy_forward(in_float64(state.target_params), stats, view[rows])
    close(updated.target_stats, stats, rtol=1e-4, atol=1e-5)


def test_the_number_of_micro_batches_must_divide_the_rows():
    learner = make(accum_steps=3)
    with pytest.raises(ValueError, match="accum_steps=3 does not divide the 8 rows"):
        byol.update(learner, byol.init(learner, 0, make_batch()), make_batch())
