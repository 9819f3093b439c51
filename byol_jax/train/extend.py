"""A longer run that starts where the learning rate of a finished one began to fall to 0."""

from ml_collections import ConfigDict

from byol_jax.errors import ConfigError
from byol_jax.runs import paths
from byol_jax.runs import run as run_lib


def longer(workdir: paths.AnyPath, epochs: int) -> ConfigDict:
    """The config of a run that is some epochs longer than the run in a folder.

    On the same devices it ends in the same weights, to the bit, as a run that had been planned with
    that length: no step before the cool-down depends on the end. So what it costs beyond the
    planned run are the steps of the first cool-down.

    Args:
      workdir: of a run with config.optimizer.schedule=constant.
      epochs: to add, at least 1.

    Raises:
      CheckpointError: the folder holds no run.
      ConfigError: the schedules of the run depend on its length, or it has no checkpoint to start
        from.
    """
    run = run_lib.read(workdir)
    config = run.config.copy_and_resolve_references()
    changes_tau = config.target.rule == "ema" and config.target.tau_schedule != "constant"
    if run.cooldown_start is None or changes_tau:
        raise ConfigError(
            f"{workdir} cannot be lengthened, as its schedules end with it. Of a new run with "
            "--config.optimizer.schedule=constant --config.target.tau_schedule=constant they do "
            f"not; it can start from this encoder, with --config.init.encoder={workdir}."
        )
    state = workdir / "checkpoints" / str(run.cooldown_start)
    if not state.is_dir():
        raise ConfigError(
            f"{workdir} has no checkpoint of step {run.cooldown_start}, where the learning rate "
            "begins to fall: resume the run until it is there."
        )
    if config.epochs:
        config.epochs += epochs
    else:
        config.steps += epochs * run.steps_per_epoch
    config.init.encoder, config.init.target_encoder = "", ""
    config.init.state = str(state)
    return config
