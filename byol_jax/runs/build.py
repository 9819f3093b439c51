"""From a resolved config to the objects it describes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from byol_jax import byol, models, objectives, optim
from byol_jax import models
from byol_jax import optim
from byol_jax.augment import image as image_augment
from byol_jax.runs import config as config_lib
from byol_jax.errors import UserError


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step.

    Raises:
      UserError: the warm-up is longer than the run.
    """
    total = config_lib.total_steps(config, steps_per_epoch)
    warmup = config_lib.warmup_steps(config, steps_per_epoch)
    if warmup >= total:
        raise UserError(
            f"config.optimizer.warmup_epochs={config.optimizer.warmup_epochs:g} is {warmup} steps, "
            f"but the whole run has {total}: shorten the warm-up or lengthen the run."
        )
    return optim.warmup_cosine(config_lib.learning_rate_peak(config), warmup, total)


def optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of a resolved config."""
    chosen = config.optimizer
    if chosen.name == "adamw":
        return optim.adamw(schedule, chosen.weight_decay)
    if chosen.name == "sgd":
        return optim.sgd(schedule, chosen.weight_decay, chosen.momentum)
    return optim.lars(
        schedule, chosen.weight_decay, chosen.momentum, chosen.trust_coefficient, chosen.clip
    )


def policy(config: ConfigDict) -> image_augment.Policy:
    """The photometric policy of a resolved config."""
    return image_augment.Policy(
        view1=image_augment.View(**config.views.view1),
        view2=image_augment.View(**config.views.view2),
        mean=tuple(config.views.mean),
        std=tuple(config.views.std),
    )


def encoder(config: ConfigDict, axis_name: str | None = None) -> models.ResNet:
    """The encoder of a resolved config."""
    chosen, channels = config.encoder, {}
    if chosen.stem_channels:
        channels["stem_channels"] = chosen.stem_channels
    if chosen.stage_channels:
        channels["stage_channels"] = tuple(chosen.stage_channels)
    return models.ENCODERS[chosen.name](
        **channels,
        width_multiplier=chosen.width_multiplier,
        stem=chosen.stem,
        padding=chosen.padding,
        first_shortcut=chosen.first_shortcut,
        zero_init_scale=chosen.zero_init_scale,
        remat=chosen.remat,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


def heads(
    config: ConfigDict, axis_name: str | None = None
) -> tuple[models.MLP, models.MLP | None]:
    """Projector and predictor of a resolved config."""
    chosen = config.heads
    projector = models.MLP(
        chosen.hidden_size,
        chosen.output_size,
        chosen.projector_layers,
        jnp.dtype(config.dtype),
        axis_name,
    )
    if not chosen.predictor_layers:
        return projector, None
    return projector, projector.clone(
        hidden_size=chosen.predictor_hidden_size, layers=chosen.predictor_layers
    )


def target_decay(config: ConfigDict, total: int) -> optax.Schedule:
    """The target's decay by step, for a run of `total` steps."""
    if config.tau_schedule == "constant":
        return optim.constant_target_decay(config.tau_base)
    return optim.target_decay(config.tau_base, total)


def example_batch(config: ConfigDict) -> byol.Batch:
    """Two blank examples of the shapes that a run trains on."""
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    return byol.Batch(np.zeros((2, 2, *shape), np.uint8), None, np.arange(2, dtype=np.int32))


def objective(config: ConfigDict) -> byol.Objective:
    """The objective of a resolved config: BYOL's, or one of its ablations."""
    chosen = byol.byol_objective
    if config.negatives.beta:
        chosen = objectives.with_negatives(config.negatives.beta, config.negatives.temperature)
    return chosen if config.target_network else objectives.without_target(chosen)


def make_learner(
    config: ConfigDict,
    schedule: optax.Schedule,
    total: int,
    num_classes: int | None,
    axis_name: str | None,
) -> byol.Learner:
    """BYOL as a resolved config describes it, for a run of `total` steps."""
    projector, predictor = heads(config, axis_name)
    augment = policy(config)
    return byol.make_learner(
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
