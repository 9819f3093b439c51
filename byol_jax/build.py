"""From a resolved config to the objects it describes."""

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from byol_jax import byol, networks, optim, views
from byol_jax import config as config_lib
from byol_jax.errors import UserError


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step.

    Raises:
      UserError: the warm-up is longer than the run.
    """
    total = config_lib.total_steps(config, steps_per_epoch)
    warmup = round(config.optimizer.warmup_epochs * steps_per_epoch)
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
    return optim.lars(schedule, chosen.weight_decay, chosen.momentum, chosen.trust_coefficient)


def policy(config: ConfigDict) -> views.Policy:
    """The photometric policy of a resolved config."""
    return views.Policy(
        view1=views.View(**config.views.view1),
        view2=views.View(**config.views.view2),
        mean=tuple(config.views.mean),
        std=tuple(config.views.std),
    )


def encoder(config: ConfigDict, axis_name: str | None = None) -> networks.ResNet:
    """The encoder of a resolved config."""
    return networks.ENCODERS[config.encoder.name](
        width_multiplier=config.encoder.width_multiplier,
        stem=config.encoder.stem,
        padding=config.encoder.padding,
        zero_init_scale=config.encoder.zero_init_scale,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(height, width, channels) of a view."""
    return config.data.image_size, config.data.image_size, config.data.channels


def make_learner(
    config: ConfigDict,
    schedule: optax.Schedule,
    total: int,
    num_classes: int | None,
    axis_name: str | None,
) -> byol.Learner:
    """BYOL as a resolved config describes it, for a run of `total` steps."""
    return byol.make_learner(
        encoder(config, axis_name),
        policy(config),
        optimizer(config, schedule),
        optim.target_decay(config.tau_base, total),
        hidden_size=config.heads.hidden_size,
        output_size=config.heads.output_size,
        num_classes=num_classes,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
