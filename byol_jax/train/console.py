"""What a run prints: progress, a summary before the first step, and its throughput at the end."""

import sys
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from byol_jax import backend, byol, data
from byol_jax.backend.compile_cache import Compilations
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds
from byol_jax.runs import run as run_lib
from byol_jax.runs.paths import AnyPath
from byol_jax.train import target_decay
from byol_jax.train.timer import INPUT_BOUND, Timer

SHOWN = ("loss", "images_per_second", "knn_test_top1", "probe_test_top1", "probe_train_top1")


class Progress:
    """A progress bar on a terminal, plain lines elsewhere; or nothing."""

    def __init__(self, total_steps: int, quiet: bool = False):
        self._quiet = quiet
        self._bar = tqdm.tqdm(
            total=total_steps,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or not sys.stderr.isatty(),
        )

    def advance(self, step: int) -> None:
        """Shows the number of steps done."""
        if not self._bar.n:
            # Leaves out the first step, which compiled, from the rate that the bar shows.
            self._bar.n = self._bar.initial = step
            self._bar.unpause()
        self._bar.update(step - self._bar.n)

    def report(self, step: int, metrics: dict[str, float], seconds_left: float | None) -> None:
        """Shows the main metrics, on the bar or as a line."""
        shown = {key: f"{float(metrics[key]):.4g}" for key in SHOWN if key in metrics}
        if not self._bar.disable:
            self._bar.set_postfix(shown)
            return
        line = "  ".join(f"{key} {value}" for key, value in shown.items())
        if seconds_left is not None:
            line += f"  {tqdm.tqdm.format_interval(seconds_left)} left"
        self.log(f"step {step}/{self._bar.total}  {line}")

    def log(self, line: str) -> None:
        """Prints a line, above the bar."""
        if not self._quiet:
            self._bar.write(line)
            sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def warn_of_slow_target(
    log: Callable[[str], None], config: ConfigDict, renewals: float, total: int
) -> None:
    """Logs a better decay for a run of `total` steps that is too short for its own.

    Args:
      log: receives the line.
      config: of the run, whose target is a moving average.
      renewals: sum of 1 - tau, which is how many times the run replaces the target's weights.
      total: steps.
    """
    schedule = config.target.tau_schedule
    better = target_decay.fitting_decay(schedule, total)
    if renewals < target_decay.FEW_RENEWALS and better < config.target.tau_base:
        log(
            f"warning: tau lets the target network follow too slowly for {total} steps, which "
            f"slows learning: the sum of 1 - tau is {renewals:.0f} (156 to 626 in the paper's "
            f"runs), and {target_decay.renewals(better, schedule, total):.0f} with "
            f"--config.target.tau_base={better:.3g}."
        )


def log_run_summary(
    log: Callable[[str], None],
    run: run_lib.Run,
    learner: byol.Learner,
    workdir: AnyPath,
    first: int,
    is_resumed: bool,
) -> None:
    """Logs the data, the length and the schedules of a run that starts at step `first`."""
    config, data, total = run.config, run.data, run.total_steps
    kind = kinds.of(config)
    classes = "no labels" if data["num_classes"] is None else f"{data['num_classes']} classes"
    log(
        f"{data['name']}: {data['num_examples']} {kind.unit}, {classes}; {config.encoder.name} at "
        f"{kind.describe(config)}"
    )
    log(f"Computed by {run_lib.describe(run_lib.computed_by(config))}.")
    note = backend.choose_convolution(config.cpu_convolution, dtype=config.dtype).note
    if note:
        log(f"oneDNN would convolve faster than XLA: {note}.")
    batch = f"{config.batch_size} {kind.unit}"
    if config.accum_steps > 1:
        micro_batch = config_lib.micro_batch_size(config)
        batch += f" ({config.accum_steps} micro-batches of {micro_batch})"
    log(f"{total} steps of {batch}, {run.steps_per_epoch} per epoch, in {workdir}")
    steps = sorted({0, run.warmup_steps, total})
    # Compiled, because dozens of small programs take longer.
    schedules = jax.jit(jax.vmap(lambda step: (run.learning_rate()(step), learner.tau(step))))
    rates, taus = jax.device_get(schedules(np.arange(total + 1)))
    every = f"every {config.target.every_steps} steps"
    target = {
        "ema": f"tau {taus[0]:g} at step 0, {taus[-1]:g} at step {total}",
        "copy": f"the target is a copy of the online network, made {every}",
        "redraw": f"the target has random weights, drawn {every}",
        "frozen": "the target is frozen",
        "none": "no target network",
    }[config.target.rule]
    rates = ", ".join(f"{rates[step]:g} at step {step}" for step in steps)
    log(f"{config.optimizer.name}: learning rate {rates}; {target}")
    if config.target.rule == "ema" and not is_resumed:
        warn_of_slow_target(log, config, np.sum(1 - taus[:-1]), total)
    if is_resumed:
        log(f"Resuming from the checkpoint of step {first}.")
    for key, path in config.init.items():
        if path and not is_resumed:
            log(f"Starting from config.init.{key}={path}, at step {first}.")


def first_step_time(timer: Timer, compilations: Compilations) -> str:
    """The time to the end of the first step, and the part of it that compiling took."""
    return (
        f"First step after {timer.since_start():.1f} s, of which {compilations.seconds:.1f} "
        f"compiling or loading compiled programs ({compilations.count} programs)."
    )


def throughput_summary(timer: Timer, config: ConfigDict, source: data.Source) -> str:
    """The throughput of the run, and if it was input-bound, what would make it faster."""
    rates = timer.run_rates(config.batch_size)
    if not rates:
        return "Too few steps to measure the throughput."
    share = rates["input_wait_share"]
    text = f"{rates['images_per_second']:.4g} images/s, {share:.0%} of the time waiting for input"
    if share <= INPUT_BOUND:
        return f"{text}."
    return f"{text}: the run was input-bound. {kinds.of(config).input_bound_hint(config, source)}"
