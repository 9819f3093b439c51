"""BYOL, top to bottom: what is trained, the loss, and one update.

Grill et al. 2020, "Bootstrap your own latent" (arXiv 2006.07733). An online network (parameters
theta) learns to predict, from one view of an image, what a target network (parameters xi) makes of
another view of it; xi follows theta slowly. No negative pairs: what keeps the two from agreeing on
a constant is the predictor, which only the online network has, and the slowness of the target.

Everything here is a pure function over arrays and a Flax module. The crops of a view come with the
batch (input/); its colours are changed here, on the device (views.py). To drive it by hand:

    learner = byol.make_learner(encoder, policy, optimizer, tau)
    state = byol.init(learner, seed=0, image_shape=(32, 32, 3))
    update = jax.jit(functools.partial(byol.update, learner), donate_argnums=0)
    state, metrics = update(state, batch)
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from byol_jax import contrastive, views
from byol_jax.networks import MLP

Tree = Any  # a pytree of arrays


class Batch(NamedTuple):
    """What one update sees: two crops of each image, as they come from the input pipeline."""

    views: jax.Array  # uint8 (2, batch, height, width, channels)
    labels: jax.Array | None  # int32 (batch,), or None: without labels the probe is off
    positions: jax.Array  # int32 (batch,): place of the example in the global batch


class State(NamedTuple):
    """All that changes during training; one pytree, the same on every replica."""

    step: jax.Array  # int32 (): updates done so far
    seed: jax.Array  # uint32 (): with step and position, the source of all randomness
    online_params: Tree  # theta: encoder, projector, predictor, probe
    target_params: Tree  # xi: encoder, projector
    online_stats: Tree  # running batch-norm statistics of the online network
    target_stats: Tree  # and the target's own
    opt_state: optax.OptState


class Outputs(NamedTuple):
    """What a network makes of a batch of images; a target network has the first two only."""

    embedding: jax.Array  # y = f(v), float32 (batch, features)
    projection: jax.Array  # z = g(y), float32 (batch, size)
    prediction: jax.Array | None = None  # q(z), float32 (batch, size)
    logits: jax.Array | None = None  # probe on stop_gradient(y), float32 (batch, classes)


class TargetNetwork(nn.Module):
    """Encoder f and projector g (section 3.1)."""

    encoder: nn.Module
    projector: nn.Module

    def __call__(self, images: jax.Array, train: bool) -> Outputs:
        """Embeds and projects float32 (batch, height, width, channels)."""
        embedding = encode(self.encoder, images, train)
        return Outputs(embedding, self.projector(embedding, train).astype(jnp.float32))


class OnlineNetwork(nn.Module):
    """Encoder f, projector g and predictor q, with a linear probe to watch the training by."""

    encoder: nn.Module
    projector: nn.Module
    predictor: nn.Module | None  # None (an ablation): q is the identity
    probe: nn.Module | None = None

    def __call__(self, images: jax.Array, train: bool) -> Outputs:
        """Embeds, projects and predicts float32 (batch, height, width, channels)."""
        embedding = encode(self.encoder, images, train)
        projection = self.projector(embedding, train)
        prediction = projection if self.predictor is None else self.predictor(projection, train)
        logits = None
        if self.probe is not None:
            # The probe learns from the labels; the encoder must not.
            logits = self.probe(jax.lax.stop_gradient(embedding)).astype(jnp.float32)
        projection, prediction = projection.astype(jnp.float32), prediction.astype(jnp.float32)
        return Outputs(embedding, projection, prediction, logits)


@dataclasses.dataclass(frozen=True)
class Learner:
    """What stays fixed during training.

    `online` and `target` hold encoders and projectors of the same shapes. Under `axis_name` the
    batch is split over replicas, and batch norm should be synchronised by the same name. The last
    three fields are for ablations (section 5) and for small memories.
    """

    online: OnlineNetwork
    target: TargetNetwork | None  # None: the online projections, with their gradient, are the goal
    policy: views.Policy  # photometric augmentation of both views, and the normalisation
    optimizer: optax.GradientTransformation
    tau: Callable[[jax.Array], jax.Array]  # target decay as a function of the step
    axis_name: str | None = None
    beta: float = 0.0  # weight of the negatives; 0 is BYOL (contrastive.py)
    temperature: float = 0.1  # alpha of the negatives
    accum_steps: int = 1  # micro-batches that an update averages its gradient over, in turn


def make_learner(
    encoder: nn.Module,
    policy: views.Policy,
    optimizer: optax.GradientTransformation,
    tau: Callable[[jax.Array], jax.Array],
    *,
    projector: nn.Module = MLP(),  # noqa: B008 (modules are immutable)
    predictor: nn.Module | None = MLP(),  # noqa: B008
    num_classes: int | None = None,
    target_network: bool = True,
    axis_name: str | None = None,
    beta: float = 0.0,
    temperature: float = 0.1,
    accum_steps: int = 1,
) -> Learner:
    """BYOL around any encoder, with the paper's heads if no others are given.

    Args:
      encoder: Flax module, float32 images (batch, height, width, channels) -> (batch, features).
        If its call takes `train`, it is told. It may keep `batch_stats`; it may not draw random
        numbers of its own.
      policy: photometric augmentation and normalisation.
      optimizer: for the online parameters, `optim.lars` for one.
      tau: target decay by step, `optim.target_decay` for one.
      projector: g, called with (batch, features) and `train`, such as `networks.MLP`.
      predictor: q, likewise, with an output as large as its input; None leaves it out.
      num_classes: with labels, the classes of the linear probe; None leaves the probe out.
      target_network: False leaves it out: the online network regresses its own projections.
      axis_name: mapped axis of replicas (see `Learner`); give the batch norm of encoder and heads
        the same.
      beta: weight of the negatives, at least 0.
      temperature: of the negatives, above 0.
      accum_steps: micro-batches in an update, at least 1; divides the rows of a replica.
    """
    probe = None if num_classes is None else nn.Dense(num_classes)
    online = OnlineNetwork(encoder, projector, predictor, probe)
    target = TargetNetwork(encoder.clone(), projector.clone()) if target_network else None
    return Learner(
        online, target, policy, optimizer, tau, axis_name, beta, temperature, accum_steps
    )


def encode(encoder: nn.Module, images: jax.Array, train: bool) -> jax.Array:
    """Runs any Flax module as an encoder; it is told `train` if its call takes that argument.

    Raises:
      ValueError: the encoder does not return one vector for each image.
    """
    takes_train = "train" in inspect.signature(type(encoder).__call__).parameters
    embedding = encoder(images, train=train) if takes_train else encoder(images)
    if embedding.ndim != 2 or embedding.shape[0] != images.shape[0]:
        raise ValueError(
            f"The encoder must return (batch, features), but it made {embedding.shape} of images "
            f"{images.shape}: end it with a mean over height and width, or a reshape."
        )
    return embedding.astype(jnp.float32)


def init(learner: Learner, seed: int, image_shape: tuple[int, int, int]) -> State:
    """The state before the first update; the target starts as a copy of the online network.

    The authors' code draws the target's weights anew; they saw no difference.

    Args:
      learner: what to train.
      seed: non-negative; initial weights and all later randomness follow from it.
      image_shape: (height, width, channels) of one view.
    """
    images = jnp.zeros((2, *image_shape), jnp.float32)
    variables = learner.online.init(jax.random.key(seed), images, train=True)
    params, stats = variables["params"], variables.get("batch_stats", {})
    of_target = () if learner.target is None else ("encoder", "projector")
    return State(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        online_params=params,
        # Copies, so that the whole state can be donated to the update.
        target_params={k: jax.tree.map(jnp.copy, params[k]) for k in of_target if k in params},
        online_stats=stats,
        target_stats={k: jax.tree.map(jnp.copy, stats[k]) for k in of_target if k in stats},
        opt_state=learner.optimizer.init(params),
    )


def apply(network: nn.Module, params: Tree, stats: Tree, images: jax.Array) -> tuple[Outputs, Tree]:
    """Runs a network in training mode; returns its outputs and its new running statistics."""
    variables = {"params": params, "batch_stats": stats}
    outputs, changed = network.apply(variables, images, train=True, mutable=["batch_stats"])
    return outputs, changed.get("batch_stats", stats)


def l2_normalize(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero, with a finite gradient, where x is zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))


def regression_loss(prediction: jax.Array, target_projection: jax.Array) -> jax.Array:
    """|q^ - z'^|^2 = 2 - 2 cos(q, z'), equation 2; (batch, size) twice -> (batch,), 0 to 4."""
    chex.assert_equal_shape([prediction, target_projection])
    difference = l2_normalize(prediction) - l2_normalize(target_projection)
    return jnp.sum(difference**2, axis=-1)


def loss_fn(
    online_params: Tree,
    learner: Learner,
    state: State,
    view1: jax.Array,
    view2: jax.Array,
    labels: jax.Array | None,
) -> tuple[jax.Array, tuple[Tree, Tree, dict[str, jax.Array]]]:
    """The loss of a batch, with the new running statistics of both networks and the metrics."""
    # Each view passes on its own: batch-norm statistics are those of one view, never of both.
    online1, online_stats = apply(learner.online, online_params, state.online_stats, view1)
    online2, online_stats = apply(learner.online, online_params, online_stats, view2)
    if learner.target is None:
        z1, z2, target_stats = online1.projection, online2.projection, state.target_stats
    else:
        xi, target_stats = state.target_params, state.target_stats
        target1, target_stats = apply(learner.target, xi, target_stats, view1)
        target2, target_stats = apply(learner.target, xi, target_stats, view2)
        # The target is a constant: "sg" in figure 2.
        z1, z2 = jax.lax.stop_gradient((target1.projection, target2.projection))

    # Both directions, summed rather than averaged (end of section 3.1): parameters that LARS does
    # not adapt see the size of the gradient.
    q1, q2 = online1.prediction, online2.prediction
    byol_loss = jnp.mean(regression_loss(q1, z2) + regression_loss(q2, z1))
    metrics = {"byol_loss": byol_loss}
    loss = byol_loss
    if learner.beta > 0:
        q1, q2, z1, z2 = map(l2_normalize, (q1, q2, z1, z2))
        alpha, axis = learner.temperature, learner.axis_name
        negatives_loss = jnp.mean(
            contrastive.negatives_loss(q1, z1, z2, alpha, axis)
            + contrastive.negatives_loss(q2, z2, z1, alpha, axis)
        )
        metrics["negatives_loss"] = negatives_loss
        loss = loss + learner.beta * negatives_loss
    if labels is not None and online1.logits is not None:
        probe_loss = jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(online1.logits, labels)
        )
        correct = jnp.argmax(online1.logits, axis=-1) == labels
        metrics |= {"probe_loss": probe_loss, "probe_train_top1": jnp.mean(correct)}
        loss = loss + probe_loss
    # The probe reads a stop_gradient of the embedding, so its loss moves the probe alone.
    metrics["loss"] = loss
    return loss, (online_stats, target_stats, metrics)


@jax.jit
def update_target(target_params: Tree, online_params: Tree, tau: jax.Array) -> Tree:
    """xi <- tau xi + (1 - tau) theta, over what the target has; equation 1, in float32."""
    followed = {k: online_params[k] for k in target_params}
    return jax.tree.map(lambda xi, theta: tau * xi + (1 - tau) * theta, target_params, followed)


def update(learner: Learner, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    """One step of BYOL (algorithm 1): the online network by gradient, then the target by EMA.

    Under `learner.axis_name` each replica gets its rows of the batch and the same state, and all
    return the same new state and metrics (float32 scalars).
    """
    gradients, online_stats, target_stats, metrics = mean_gradients(learner, state, batch)
    if learner.axis_name is not None:
        # Statistics are equal already where batch norm is synchronised; an encoder of the user's
        # may not be, and the state must be the same everywhere.
        gradients, online_stats, target_stats, metrics = jax.lax.pmean(
            (gradients, online_stats, target_stats, metrics), learner.axis_name
        )
    updates, opt_state = learner.optimizer.update(gradients, state.opt_state, state.online_params)
    online_params = optax.apply_updates(state.online_params, updates)

    target_params = state.target_params
    if learner.target is not None:
        metrics["tau"] = tau = learner.tau(state.step)
        target_params = update_target(target_params, online_params, tau)
    metrics |= {
        "gradient_norm": optax.tree.norm(gradients),
        "parameter_norm": optax.tree.norm(online_params),
    }
    new_state = State(
        step=state.step + 1,
        seed=state.seed,
        online_params=online_params,
        target_params=target_params,
        online_stats=online_stats,
        target_stats=target_stats,
        opt_state=opt_state,
    )
    return new_state, metrics


def mean_gradients(
    learner: Learner, state: State, batch: Batch
) -> tuple[Tree, Tree, Tree, dict[str, jax.Array]]:
    """Gradients, new running statistics of both networks, and metrics of a replica's batch.

    With `accum_steps` above 1 the rows go through in as many micro-batches, one after the other,
    for the memory of one. All is averaged over them: the update of the whole batch, but for batch
    norm and negatives, which see a micro-batch at a time.
    """

    def of_micro_batch(stats: tuple[Tree, Tree], rows: Batch) -> tuple[Any, Any]:
        views12 = augmented(learner.policy, state, rows)
        current = state._replace(online_stats=stats[0], target_stats=stats[1])
        gradients, (online_stats, target_stats, metrics) = jax.grad(loss_fn, has_aux=True)(
            state.online_params, learner, current, *views12, rows.labels
        )
        return (online_stats, target_stats), (gradients, metrics)

    stats = (state.online_stats, state.target_stats)
    if learner.accum_steps == 1:
        stats, (gradients, metrics) = of_micro_batch(stats, batch)
        return gradients, *stats, metrics

    def accumulate(carry: tuple[Any, Any], rows: Batch) -> tuple[tuple[Any, Any], None]:
        stats, sums = carry
        stats, values = of_micro_batch(stats, rows)
        return (stats, jax.tree.map(jnp.add, sums, values)), None

    rows = micro_batches(batch, learner.accum_steps)
    _, shapes = jax.eval_shape(of_micro_batch, stats, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # In a loop XLA's convolutions on a CPU are slow: 28 images/s where unrolled they made 540.
    unroll = jax.default_backend() == "cpu"
    (stats, sums), _ = jax.lax.scan(accumulate, (stats, zeros), rows, unroll=unroll)
    gradients, metrics = jax.tree.map(lambda x: x / learner.accum_steps, sums)
    return gradients, *stats, metrics


def micro_batches(batch: Batch, count: int) -> Batch:
    """Rows in `count` groups: a new leading axis, before those that `Batch` names.

    Raises:
      ValueError: the rows do not divide.
    """
    rows = batch.positions.shape[0]
    if rows % count:
        raise ValueError(f"accum_steps={count} does not divide the {rows} rows of a replica.")
    views12 = batch.views.reshape(2, count, rows // count, *batch.views.shape[2:])
    labels = None if batch.labels is None else batch.labels.reshape(count, -1)
    return Batch(jnp.moveaxis(views12, 1, 0), labels, batch.positions.reshape(count, -1))


def augmented(policy: views.Policy, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The two normalised float32 views of this step, from (seed, step, position) alone."""
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    return views.augment(policy, key, batch.views, batch.positions)


def infer(learner: Learner, state: State, images: jax.Array) -> Outputs:
    """What the online network makes of images in evaluation mode (running statistics).

    Args:
      learner: of the state.
      state: whose online parameters and statistics are used.
      images: uint8 (n, height, width, channels), without augmentation.
    """
    variables = {"params": state.online_params, "batch_stats": state.online_stats}
    images = views.normalize(images, learner.policy.mean, learner.policy.std)
    return learner.online.apply(variables, images, train=False)


def embed(learner: Learner, state: State, images: jax.Array) -> jax.Array:
    """Embeddings f(x) in evaluation mode: uint8 (n, h, w, channels) -> float32 (n, features)."""
    return infer(learner, state, images).embedding


def inspect_features(learner: Learner, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """What the health checks look at: view 1's embeddings and the projections of view 2.

    Returns:
      Float32 (rows, features) and (rows, size) of the first micro-batch, the target's projections
      where there is a target, both in training mode: batch statistics, as the loss sees them.
    """
    rows = jax.tree.map(lambda x: x[0], micro_batches(batch, learner.accum_steps))
    view1, view2 = augmented(learner.policy, state, rows)
    online, _ = apply(learner.online, state.online_params, state.online_stats, view1)
    if learner.target is None:
        goal, _ = apply(learner.online, state.online_params, state.online_stats, view2)
    else:
        goal, _ = apply(learner.target, state.target_params, state.target_stats, view2)
    return online.embedding, goal.projection
