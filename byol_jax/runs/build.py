"""From a resolved config to the objects that it describes."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from byol_jax import backend, byol, models, objectives, optim, targets
from byol_jax.errors import ConfigError
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step, at its peak base_learning_rate * batch_size / 256 (section 3.3).

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
    peak = config.optimizer.base_learning_rate * config.batch_size / 256
    if config.optimizer.schedule == "constant":
        start = config_lib.cooldown_start(config, steps_per_epoch)
        if start < warmup:
            raise ConfigError(
                f"config.optimizer.warmup_epochs={config.optimizer.warmup_epochs:g} is {warmup} "
                f"steps, but the cool-down begins at step {start}: shorten the warm-up, or "
                "config.optimizer.cooldown_share."
            )
        return optim.warmup_constant(peak, warmup, start, total)
    return optim.warmup_cosine(peak, warmup, total)


def optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer, which leaves what the encoder freezes as it is."""
    chosen = _optimizer(config, schedule)
    module = encoder(config)
    by_path = {("encoder",): module}
    if isinstance(module, models.ByArray):
        by_path = {("encoder", f"encoders_{key}"): one for key, one in module.encoders.items()}
    frozen = [(*path, name) for path, one in by_path.items() for name in getattr(one, "frozen", ())]
    return optim.freeze(chosen, *frozen) if frozen else chosen


def _optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
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
    if config.target.tau_schedule == "constant":
        return optax.constant_schedule(config.target.tau_base)  # table 5 of the paper
    return optim.target_decay(config.target.tau_base, total)


def encoder(
    config: ConfigDict, axis_name: str | None = None, settings: ConfigDict | None = None
) -> nn.Module:
    """The encoder of these settings; by default of `config.encoder`."""
    chosen = backend.choose_convolution(config.cpu_convolution, dtype=config.dtype)
    own = config.encoder if settings is None else settings

    def make(settings: Mapping[str, Any] = own) -> nn.Module:
        return models.make_encoder(
            dtype=jnp.dtype(config.dtype),
            axis_name=axis_name,
            convolution=chosen.function,
            **settings,
        )

    kind = kinds.of(config)
    return kind.wrap(kind.encoder_record(config), make, axis_name)


def target_network(config: ConfigDict, axis_name: str | None = None) -> nn.Module:
    """The target network."""
    if config.target.rule == "none":
        return objectives.NoTarget()
    settings = config.target.encoder if config.target.encoder.name else config.encoder
    projector, _ = heads(config, axis_name)
    return models.TargetNetwork(
        encoder(config, axis_name, settings), projector, config.matmul_precision
    )


def heads(config: ConfigDict, axis_name: str | None = None) -> tuple[models.MLP, models.MLP | None]:
    """Projector and predictor."""
    chosen, dtype = config.heads, jnp.dtype(config.dtype)

    # Without projector, predictions must be as long as embeddings.
    output_size = chosen.output_size if chosen.projector_layers else None

    def head(hidden_size: int, layers: int) -> models.MLP:
        return models.MLP(hidden_size, output_size, layers, dtype, axis_name)

    projector = head(chosen.hidden_size, chosen.projector_layers)
    if not chosen.predictor_layers:
        return projector, None
    return projector, head(chosen.predictor_hidden_size, chosen.predictor_layers)


def objective(config: ConfigDict) -> byol.Objective:
    """The objective."""
    chosen = objectives.make_objective(**config.objective)
    if config.target.rule == "none" and objectives.OBJECTIVES[config.objective.name].has_target:
        chosen = objectives.without_target(chosen)
    if kinds.of(config).num_local_views(config):
        chosen = objectives.multi_crop(chosen, has_target=config.target.rule != "none")

    # A context while it is traced, and not JAX's own setting, which belongs to the caller.
    def with_precision(*args):
        with models.matmul_precision(config.matmul_precision):
            return chosen(*args)

    return with_precision


def make_learner(
    config: ConfigDict,
    schedule: optax.Schedule,
    total: int,
    num_classes: int | None,
    axis_name: str | None,
) -> byol.Learner:
    """The learner of a run of `total` steps."""
    (projector, predictor), precision = heads(config, axis_name), config.matmul_precision
    probe = None if num_classes is None else nn.Dense(num_classes)
    kind = kinds.of(config)
    augment = kind.policy(config)
    learner = byol.Learner(
        models.OnlineNetwork(encoder(config, axis_name), projector, predictor, probe, precision),
        target_network(config, axis_name),
        augment,
        augment.preprocess,
        optimizer(config, schedule),
        target_decay(config, total),
        objective(config),
        perturb=kind.perturb(config),
        axis_name=axis_name,
        accum_steps=config.accum_steps,
        unroll=jax.default_backend() == "cpu",
    )
    return dataclasses.replace(learner, next_target=next_target(config, learner))


def next_target(config: ConfigDict, learner: byol.Learner) -> targets.NextTarget | None:
    """What the target network becomes after an update; None: the moving average."""
    chosen = config.target
    if chosen.rule == "copy":
        return targets.copy_every(chosen.every_steps)
    if chosen.rule == "redraw":
        batch = kinds.of(config).example_batch(config)
        return targets.redraw_every(
            chosen.every_steps, lambda key: targets.draw(learner, key, batch)[0]
        )
    return None if chosen.rule == "ema" else targets.frozen()


def init_fn(config: ConfigDict, learner: byol.Learner) -> Callable[[int, byol.Batch], byol.State]:
    """Makes the state before the first update, from a seed and a batch."""
    # A target that does not learn from the online network has weights of its own.
    has_own_weights = config.target.rule in ("redraw", "frozen")
    return partial(targets.init if has_own_weights else byol.init, learner)
