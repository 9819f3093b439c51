"""One update of fine-tuning, and the state that it changes.

arXiv 2006.07733, the appendices on semi-supervised learning and on transfer: cross-entropy on
random crops and flips, SGD with Nesterov momentum .9, batch norm in training mode. After the
authors' code (byol/eval_experiment.py) the learning rate is multiplied by batch size / 256 and
falls to 0 along a cosine. Its peak and the other settings of a choice are part of the state, so
that one compiled update serves all choices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from byol_jax import byol, models, optim

MOMENTUM = 0.9


class Settings(NamedTuple):
    """What the optimizer is given by a choice."""

    learning_rate: float  # at the first step, for batches of 256
    weight_decay: float  # of kernels, added to the gradient; the paper's is 0 but for transfer
    total_steps: int  # after which the learning rate is 0


class State(NamedTuple):
    """All that changes during fine-tuning, and the settings; the same on every replica."""

    step: jax.Array  # int32 (): updates done so far
    seed: jax.Array  # uint32 (): with step and position, the source of all randomness
    params: byol.Tree  # of the encoder and of the head
    stats: byol.Tree  # running statistics of batch norm
    opt_state: optax.OptState  # with the settings


@dataclasses.dataclass(frozen=True, eq=False)
class Tuner:
    """What stays fixed during fine-tuning."""

    network: models.Classifier
    preprocess: Callable[[jax.Array], jax.Array]  # uint8 images -> what the encoder takes
    optimizer: optax.GradientTransformation
    precision: str = "default"  # of float32 products: see models.matmul_precision
    batch_norm_decay: float = 0.9  # of the running averages
    axis_name: str | None = None  # mapped axis of replicas


def optimizer(batch_size: int, frozen: tuple[str, ...] = ()) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, whose `Settings` are in its state.

    Args:
      batch_size: of an update, over all replicas.
      frozen: names of the encoder's parameters that stay as they are.
    """

    @optax.inject_hyperparams
    def sgd(
        learning_rate: float, weight_decay: float, total_steps: float
    ) -> optax.GradientTransformation:
        def rate(step: jax.Array) -> jax.Array:
            done = jnp.minimum(step / total_steps, 1)
            return learning_rate * batch_size / 256 * (1 + jnp.cos(jnp.pi * done)) / 2

        chain = optax.chain(
            optax.masked(optax.add_decayed_weights(weight_decay), optim.is_adapted),
            optax.trace(MOMENTUM, nesterov=True),
            optax.scale_by_learning_rate(rate),
        )
        return optim.freeze(chain, *(("encoder", name) for name in frozen)) if frozen else chain

    return sgd(0.0, 0.0, 1.0)  # `init` sets them


def init(
    tuner: Tuner,
    seed: int,
    image_shape: tuple[int, ...],
    encoder: dict[str, Any] | None,
    settings: Settings,
) -> State:
    """The state before the first update: the encoder's variables, and a random head.

    Args:
      tuner: what to train.
      seed: non-negative; the head and all later randomness follow from it.
      image_shape: (height, width, channels).
      encoder: variables of the encoder, 'params' and, if it has any, 'batch_stats'; None for random
        ones, to see what pre-training was worth.
      settings: of the optimizer.
    """
    views = jax.eval_shape(tuner.preprocess, jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8))
    variables = _init_network(tuner)(jax.random.key(seed), jnp.zeros(views.shape, views.dtype))
    if encoder is not None:
        variables = {
            kind: part | ({"encoder": encoder[kind]} if kind in encoder else {})
            for kind, part in variables.items()
        }
    variables = jax.tree.map(jnp.array, variables)  # copies: states are donated
    params = variables["params"]
    opt_state = tuner.optimizer.init(params)
    injected = {
        key: jnp.asarray(getattr(settings, key), value.dtype)
        for key, value in opt_state.hyperparams.items()
    }
    return State(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        stats=variables.get("batch_stats", {}),
        opt_state=opt_state._replace(hyperparams=injected),
    )


@functools.lru_cache(1)
def _init_network(tuner: Tuner) -> Callable[..., byol.Tree]:
    return jax.jit(lambda key, views: tuner.network.init(key, views, train=False))


def update(tuner: Tuner, state: State, batch: byol.Batch) -> tuple[State, byol.Metrics]:
    """One step of SGD.

    Args:
      tuner: what is trained.
      state: is replaced.
      batch: examples uint8 (n, 1, height, width, channels), with labels.

    Returns:
      The new state, and the metrics 'loss' and 'train_top1'.
    """
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)

    def loss_fn(params: byol.Tree) -> tuple[jax.Array, tuple[byol.Tree, byol.Metrics]]:
        with (
            models.matmul_precision(tuner.precision),
            models.batch_norm_decay(tuner.batch_norm_decay),
            models.dropout_by_position(batch.positions),
        ):
            logits, changed = tuner.network.apply(
                {"params": params, "batch_stats": state.stats},
                tuner.preprocess(batch.examples[:, 0]),
                train=True,
                mutable=["batch_stats"],
                rngs=key,
            )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
        top1 = jnp.mean(jnp.argmax(logits, axis=-1) == batch.labels)
        return loss, (changed.get("batch_stats", state.stats), {"loss": loss, "train_top1": top1})

    gradient, (stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
    if tuner.axis_name is not None:
        gradient, stats, metrics = jax.lax.pmean((gradient, stats, metrics), tuner.axis_name)
    updates, opt_state = tuner.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, state.seed, params, stats, opt_state), metrics


def predict(tuner: Tuner, state: State, images: jax.Array) -> jax.Array:
    """Logits in evaluation mode: uint8 (n, height, width, channels) -> float32 (n, classes)."""
    with models.matmul_precision(tuner.precision):
        variables = {"params": state.params, "batch_stats": state.stats}
        return tuner.network.apply(variables, tuner.preprocess(images), train=False)
