"""BYOL, top to bottom: what is trained, the loss, and one update.

Grill et al. 2020, "Bootstrap your own latent" (arXiv 2006.07733). An online network (parameters
theta) learns to predict, from one view of an example, a target network's (parameters xi) projection
of another view of it; xi follows theta slowly. There are no negative pairs: what keeps the two from
agreeing on a constant is the predictor, which only the online network has, and the slow target.

All functions here are pure, over pytrees of arrays and Flax modules. An example may be any pytree
(images, signals, a dictionary of modalities); `augment` makes two views of it. By hand:

    learner = byol.make_learner(encoder, augment, preprocess, optimizer, tau)
    state = byol.init(learner, seed=0, batch=batch)
    update = jax.jit(functools.partial(byol.update, learner), donate_argnums=0)
    state, metrics = update(state, batch)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from byol_jax import optim
from byol_jax.models import MLP, OnlineNetwork, Outputs, TargetNetwork, dropout_by_position

Tree = Any  # a pytree of arrays
Metrics = dict[str, jax.Array]  # float32 scalars

# What the key of a step is folded with: positions (int32) for examples, numbers from here on for
# networks: two for the online one, two for the target, then one for each local view.
NETWORK_KEYS = 2**31


class Batch(NamedTuple):
    """What one update receives. The batch axis is the first one of every leaf."""

    examples: Tree  # for `Learner.augment`, such as uint8 (batch, 2, height, width, channels)
    labels: jax.Array | None  # int32 (batch,), or None: without labels the probe is off
    positions: jax.Array  # int32 (batch,): position of each example in the global batch


class State(NamedTuple):
    """All that changes during training; one pytree, the same on every replica."""

    step: jax.Array  # int32 (): updates done so far
    seed: jax.Array  # uint32 (): with step and position, the source of all randomness
    online_params: Tree  # theta: encoder, projector, predictor, probe
    target_params: Tree  # xi: encoder, projector
    online_stats: Tree  # running batch-norm statistics of the online network
    target_stats: Tree  # and the target's own
    opt_state: optax.OptState


def l2_normalize(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero, with a finite gradient, where x is zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))


def regression_loss(prediction: jax.Array, target_projection: jax.Array) -> jax.Array:
    """|q^ - z'^|^2 = 2 - 2 cos(q, z'), equation 2; (batch, size) twice -> (batch,), 0 to 4."""
    chex.assert_equal_shape([prediction, target_projection])
    difference = l2_normalize(prediction) - l2_normalize(target_projection)
    return jnp.sum(difference**2, axis=-1)


def byol_objective(
    online: tuple[Outputs, Outputs], target: tuple[Outputs, Outputs], axis_name: str | None
) -> tuple[jax.Array, Metrics]:
    """The loss of a batch and its metrics; objectives.py has others.

    Args:
      online: outputs of the online network for view 1 and view 2, (batch, ...) each.
      target: outputs of the target network, likewise; constants.
      axis_name: mapped axis of replicas, for objectives that compare examples with each other.

    Returns:
      Float32 (), and float32 scalars by name.
    """
    del axis_name  # here no example depends on another
    (online1, online2), (target1, target2) = online, target
    # Both directions, summed rather than averaged (end of section 3.1): parameters that LARS does
    # not adapt see the size of the gradient.
    loss = jnp.mean(
        regression_loss(online1.prediction, target2.projection)
        + regression_loss(online2.prediction, target1.projection)
    )
    return loss, {"byol_loss": loss}


Objective = Callable[..., tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """What stays fixed during training; `make_learner` builds one. Equal only to itself."""

    online: OnlineNetwork
    target: nn.Module  # a TargetNetwork, or objectives.NoTarget
    # (key, one example) -> its two views, and local views, if any, for the online network alone
    augment: Callable[[jax.Array, Tree], tuple[Tree, ...]]
    preprocess: Callable[[Tree], Tree]  # a batch without augmentation -> what the encoder takes
    optimizer: optax.GradientTransformation
    tau: Callable[[jax.Array], jax.Array]  # target decay as a function of the step
    objective: Objective = byol_objective
    # (state, new online parameters) -> new target parameters, in place of the average with tau
    next_target: Callable[[State, Tree], Tree] | None = None
    perturb: Callable[..., tuple[Tree, ...]] | None = None  # adversarial.py: what `online` sees
    axis_name: str | None = None  # mapped axis of replicas; batch norm should average over it too
    accum_steps: int = 1  # micro-batches over which an update averages its gradient
    unroll: bool = False  # unroll the loop over micro-batches, as CPUs need


def make_learner(
    encoder: nn.Module,
    augment: Callable[[jax.Array, Tree], tuple[Tree, ...]],
    preprocess: Callable[[Tree], Tree],
    optimizer: optax.GradientTransformation,
    tau: Callable[[jax.Array], jax.Array],
    *,
    projector: nn.Module = MLP(),  # noqa: B008 (modules are immutable)
    predictor: nn.Module | None = MLP(),  # noqa: B008
    num_classes: int | None = None,
    target: nn.Module | None = None,
    **settings: Any,
) -> Learner:
    """BYOL around any encoder, with the paper's heads by default.

    Args:
      encoder: Flax module, a batch of views -> (batch, features). It may take `train`, keep
        `batch_stats`, and draw random numbers: `nn.Dropout` draws by the position of an example.
      augment: `augment(key, example)`, two views of one example; it is vmapped over the batch.
        Local views may follow, which `objectives.multi_crop` compares with the two.
      preprocess: what to do to a batch without augmentation before it enters the encoder.
      optimizer: for the online parameters, such as `optim.lars`.
      tau: target decay by step, such as `optim.target_decay`.
      projector: g, (batch, features) and `train` -> (batch, size), such as `models.MLP`.
      predictor: q, (batch, size) and `train` -> (batch, size); None is the identity.
      num_classes: number of classes of the linear probe; None leaves the probe out.
      target: the target network; by default a `TargetNetwork` of copies of encoder and projector.
      **settings: other fields of `Learner`.
    """
    probe = None if num_classes is None else nn.Dense(num_classes)
    online = OnlineNetwork(encoder, projector, predictor, probe)
    target = TargetNetwork(encoder.clone(), projector.clone()) if target is None else target
    return Learner(online, target, augment, preprocess, optimizer, tau, **settings)


def init(learner: Learner, seed: int, batch: Batch) -> State:
    """The state before the first update; the target starts as a copy of the online network.

    The authors' code draws the target's weights independently; they saw no difference.

    Args:
      learner: what to train.
      seed: non-negative; initial weights and all later randomness follow from it.
      batch: at least two examples; only their shapes and dtypes matter.
    """
    variables = init_network(learner, learner.online, jax.random.key(seed), batch)
    params, stats = variables["params"], variables.get("batch_stats", {})
    parts = learner.target.parts
    return State(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        online_params=params,
        # Copies, so that the whole state can be donated to the update.
        target_params={k: jax.tree.map(jnp.copy, params[k]) for k in parts if k in params},
        online_stats=stats,
        target_stats={k: jax.tree.map(jnp.copy, stats[k]) for k in parts if k in stats},
        opt_state=learner.optimizer.init(params),
    )


def init_network(learner: Learner, network: nn.Module, key: jax.Array, batch: Batch) -> Tree:
    """The variables of one of the networks before training, for the views of a batch."""
    batch = jax.tree.map(lambda x: x[:2], batch)
    view1, view2, *_ = jax.eval_shape(functools.partial(augment_batch, learner), key, batch)
    # Views of the same shapes use the same parameters: one is enough.
    views = [view1] if view1 == view2 else [view1, view2]
    views = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), views)
    # Compiled, because hundreds of small programs take longer.
    return jax.jit(functools.partial(network.init, train=True, method="on_each"))(key, views)


def step_key(state: State) -> jax.Array:
    """The PRNG key of an update, from seed and step alone."""
    return jax.random.fold_in(jax.random.key(state.seed), state.step)


def augment_batch(learner: Learner, key: jax.Array, batch: Batch) -> tuple[Tree, ...]:
    """The views of every example, each from the key and the example's position alone."""
    keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(batch.positions)
    return jax.vmap(learner.augment)(keys, batch.examples)


def apply(
    network: nn.Module, params: Tree, stats: Tree, views: Tree, keys: Tree, positions: jax.Array
) -> tuple[tuple[Outputs, ...], Tree]:
    """Outputs of a network for each of some views in training mode, and its new statistics.

    Each view passes separately: batch-norm statistics are those of one view, never of several.
    """
    all_outputs = []
    for view, key in zip(views, keys, strict=True):
        variables = {"params": params, "batch_stats": stats}
        with dropout_by_position(positions):
            outputs, changed = network.apply(
                variables, view, train=True, mutable=["batch_stats"], rngs=key
            )
        all_outputs.append(outputs)
        stats = changed.get("batch_stats", stats)
    return tuple(all_outputs), stats


def probe_loss(logits: jax.Array | None, labels: jax.Array | None) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of logits (batch, classes) and labels (batch,); 0 where either is missing."""
    if logits is None or labels is None:
        return jnp.zeros(()), {}
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    correct = jnp.argmax(logits, axis=-1) == labels
    return loss, {"probe_loss": loss, "probe_train_top1": jnp.mean(correct)}


def loss_fn(
    online_params: Tree, learner: Learner, state: State, batch: Batch
) -> tuple[jax.Array, tuple[tuple[Tree, Tree], Metrics]]:
    """The loss of a batch; also the new running statistics of both networks, and the metrics."""
    key, positions = step_key(state), batch.positions
    views = augment_batch(learner, key, batch)
    keys = [jax.random.fold_in(key, NETWORK_KEYS + i) for i in range(2 + len(views))]
    online_keys, target_keys = keys[:2] + keys[4:], keys[2:4]
    theta, stats = online_params, state.online_stats
    perturb = learner.perturb or (lambda *args: views)
    seen = perturb(learner, theta, stats, views, online_keys, positions)
    online, online_stats = apply(learner.online, theta, stats, seen, online_keys, positions)
    xi, stats = state.target_params, state.target_stats
    target, target_stats = apply(learner.target, xi, stats, views[:2], target_keys, positions)
    target = jax.lax.stop_gradient(target)  # the target is a constant: "sg" in figure 2

    loss, metrics = learner.objective(online, target, learner.axis_name)
    # The probe reads a stop_gradient of the embedding, so its loss moves the probe alone.
    added, probe_metrics = probe_loss(online[0].logits, batch.labels)
    loss = loss + added
    return loss, ((online_stats, target_stats), {**metrics, **probe_metrics, "loss": loss})


@jax.jit
def update_target(target_params: Tree, online_params: Tree, tau: jax.Array) -> Tree:
    """xi <- tau xi + (1 - tau) theta, over what the target has; equation 1, in float32."""
    theta = {k: online_params[k] for k in target_params}
    return jax.tree.map(lambda xi, theta: tau * xi + (1 - tau) * theta, target_params, theta)


def update(learner: Learner, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One step of BYOL (algorithm 1): the online network by gradient, then the target by EMA.

    Under `learner.axis_name` each replica gets its rows of the batch and the same state, and all
    return the same new state and metrics.
    """

    def microbatch_grads(stats: tuple[Tree, Tree], rows: Batch):
        now = state._replace(online_stats=stats[0], target_stats=stats[1])
        gradient = jax.grad(loss_fn, has_aux=True)
        grads, (stats, metrics) = gradient(state.online_params, learner, now, rows)
        return stats, (grads, metrics)

    stats = (state.online_stats, state.target_stats)
    (online_stats, target_stats), (grads, metrics) = optim.accumulate(
        microbatch_grads, stats, batch, learner.accum_steps, learner.unroll
    )
    if learner.axis_name is not None:
        # Synchronised batch norm has equal statistics on all replicas; a user's encoder may not.
        grads, online_stats, target_stats, metrics = jax.lax.pmean(
            (grads, online_stats, target_stats, metrics), learner.axis_name
        )
    updates, opt_state = learner.optimizer.update(grads, state.opt_state, state.online_params)
    online_params = optax.apply_updates(state.online_params, updates)
    if learner.next_target is not None:  # targets.py
        target_params = learner.next_target(state, online_params)
    else:
        tau = jnp.asarray(learner.tau(state.step), jnp.float32)
        target_params = update_target(state.target_params, online_params, tau)
        metrics["tau"] = tau
    new_state = State(
        step=state.step + 1,
        seed=state.seed,
        online_params=online_params,
        target_params=target_params,
        online_stats=online_stats,
        target_stats=target_stats,
        opt_state=opt_state,
    )
    metrics |= {
        "gradient_norm": optax.tree.norm(grads),
        "parameter_norm": optax.tree.norm(online_params),
    }
    return new_state, metrics


def infer(learner: Learner, state: State, examples: Tree) -> Outputs:
    """Outputs of the online network in evaluation mode, with its running statistics.

    Args:
      learner: that the state belongs to.
      state: the online parameters and statistics to use.
      examples: a batch for `learner.preprocess`, such as uint8 (n, height, width, channels).
    """
    variables = {"params": state.online_params, "batch_stats": state.online_stats}
    return learner.online.apply(variables, learner.preprocess(examples), train=False)


def embed(learner: Learner, state: State, examples: Tree) -> jax.Array:
    """Embeddings f(x) in evaluation mode: a batch of n examples -> float32 (n, features)."""
    return infer(learner, state, examples).embedding
