"""From a resolved config to the objects that it describes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from byol_jax import byol, models, objectives, optim
from byol_jax.augment import image as image_augment
from byol_jax.errors import ConfigError
from byol_jax.runs import config as config_lib


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step.

    Raises:
      ConfigError: the warm-up is longer than the run.
    """
    total = config_lib.total_steps(config, steps_per_epoch)
    warmup = config_lib.warmup_steps(config, steps_per_epoch)
    if warmup >= total:
        raise ConfigError(
            f"config.optimizer.warmup_epochs={config.optimizer.warmup_epochs:g} is {warmup} steps, "
            f"but the run has {total}: shorten the warm-up or lengthen the run."
        )
    return optim.warmup_cosine(config_lib.learning_rate_peak(config), warmup, total)


def optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer."""
    chosen = config.optimizer
    if chosen.name == "adamw":
        return optim.adamw(schedule, chosen.weight_decay)
    if chosen.name == "sgd":
        return optim.sgd(schedule, chosen.weight_decay, chosen.momentum)
    return optim.lars(
        schedule, chosen.weight_decay, chosen.momentum, chosen.trust_coefficient, chosen.clip
    )


def target_decay(config: ConfigDict, total: int) -> optax.Schedule:
    """The target's decay by step, for a run of `total` steps."""
    if config.tau_schedule == "constant":
        return optim.constant_target_decay(config.tau_base)
    return optim.target_decay(config.tau_base, total)


def policy(config: ConfigDict) -> image_augment.Policy:
    """The photometric policy."""
    return image_augment.Policy(
        view1=image_augment.View(**config.views.view1),
        view2=image_augment.View(**config.views.view2),
        mean=tuple(config.views.mean),
        std=tuple(config.views.std),
    )


def encoder(config: ConfigDict, axis_name: str | None = None) -> nn.Module:
    """The encoder."""
    return models.make_encoder(**config.encoder, dtype=jnp.dtype(config.dtype), axis_name=axis_name)


def heads(config: ConfigDict, axis_name: str | None = None) -> tuple[models.MLP, models.MLP | None]:
    """Projector and predictor."""
    chosen, dtype = config.heads, jnp.dtype(config.dtype)
    projector, predictor = (
        models.MLP(size, chosen.output_size, layers, dtype, axis_name)
        for size, layers in (
            (chosen.hidden_size, chosen.projector_layers),
            (chosen.predictor_hidden_size, chosen.predictor_layers),
        )
    )
    return projector, predictor if chosen.predictor_layers else None


def objective(config: ConfigDict) -> byol.Objective:
    """BYOL's objective, or one of its ablations."""
    chosen = byol.byol_objective
    if config.negatives.beta:
        chosen = objectives.with_negatives(config.negatives.beta, config.negatives.temperature)
    if not config.target_network:
        chosen = objectives.without_target(chosen)

    def with_precision(*args):
        with models.matmul_precision(config.matmul_precision):
            return chosen(*args)

    return with_precision


def example_batch(config: ConfigDict) -> byol.Batch:
    """Two blank examples of the shapes that a run trains on."""
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    return byol.Batch(np.zeros((2, 2, *shape), np.uint8), None, np.arange(2, dtype=np.int32))


def make_learner(
    config: ConfigDict,
    schedule: optax.Schedule,
    total: int,
    num_classes: int | None,
    axis_name: str | None,
) -> byol.Learner:
    """The learner of a run of `total` steps."""
    projector, predictor = heads(config, axis_name)
    augment = policy(config)
    learner = byol.make_learner(
        encoder(config, axis_name),
        augment,
        augment.preprocess,
        optimizer(config, schedule),
        target_decay(config, total),
        projector=projector,
        predictor=predictor,
        num_classes=num_classes,
        target=None if config.target_network else objectives.NoTarget(),
        objective=objective(config),
        axis_name=axis_name,
        accum_steps=config.accum_steps,
        unroll=jax.default_backend() == "cpu",
    )
    # The context of a trace, and not JAX's own setting, which belongs to the caller.
    networks = {"online": learner.online.clone(precision=config.matmul_precision)}
    if config.target_network:
        networks["target"] = learner.target.clone(precision=config.matmul_precision)
    return dataclasses.replace(learner, **networks)
