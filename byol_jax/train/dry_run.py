"""How long a run would take, and how much memory: from a few steps of it in a temporary folder."""

import contextlib
import io
import resource
import sys
import tempfile
import time

import jax
from ml_collections import ConfigDict

from byol_jax import parallel
from byol_jax.errors import ConfigError
from byol_jax.runs import build, kinds, paths
from byol_jax.runs import config as config_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import loop
from byol_jax.train.setup import run_context
from byol_jax.train.timer import duration

STEPS = 10  # after the first, which is compiled


def estimate(config: ConfigDict, cpu_devices: int | None = None) -> list[str]:
    """Trains STEPS steps; returns lines about speed, duration and memory.

    Args:
      config: of the run.
      cpu_devices: as of `loop.train`.

    Raises:
      UserError: as `loop.train`.
    """
    if jax.process_count() > 1:
        raise ConfigError("--dry_run is for one process: leave it out, or start one.")
    config, _ = resolve(config)
    short = config.copy_and_resolve_references()
    short.init.state = ""
    short.epochs, short.steps, short.optimizer.warmup_epochs = 0, STEPS + 1, 0.0
    short.log_every_steps, short.log_to = STEPS + 1, ""
    with tempfile.TemporaryDirectory() as folder:
        quiet = contextlib.redirect_stdout(io.StringIO())
        workdir = paths.path(folder)
        with quiet, run_context(short, workdir, None, None, cpu_devices) as ctx:
            build.learning_rate(config, ctx.run.steps_per_epoch)  # checks the warm-up
            state = parallel.replicate(ctx.start.state)
            start, compiling = time.perf_counter(), ctx.compilations.seconds
            for _, evaluate in ctx.evaluators:
                evaluate(0, state)
            compiling = ctx.compilations.seconds - compiling  # once in a run
            evaluation = time.perf_counter() - start - compiling
            ctx.evaluators.clear()
            loop.loop(ctx)
            rate = ctx.timer.run_rates(config.batch_size)["images_per_second"]
    total = config_lib.total_steps(config, ctx.run.steps_per_epoch)
    every = config.evaluation.every_steps
    times = -(-total // every) if every else 0
    training = total * config.batch_size / rate
    return [
        f"{rate:.4g} {kinds.of(config).unit}/s: {duration(training)} for {total} steps, and "
        f"{duration(times * evaluation)} for {times} evaluations on the way",
        _memory(),
    ]


def _memory() -> str:
    """The most memory so far, of a device or of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        used, has = stats["peak_bytes_in_use"] / 1e9, stats["bytes_limit"] / 1e9
        return f"{used:.1f} GB of the {has:.1f} GB of a device"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory"
