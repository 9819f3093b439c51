"""The training loop: for each batch, update; then read, evaluate and save when it is time."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, data, evaluate, health, parallel, pictures, runs, start, views
from byol_jax import config as config_lib
from byol_jax import input as input_lib
from byol_jax.checkpoint import Checkpoints
from byol_jax.clock import Clock
from byol_jax.errors import UserError
from byol_jax.signals import stop_requests
from byol_jax.writers import Metrics, Progress

KNN_NEIGHBOURS = 20
PICTURED_IMAGES = 8


def train(
    config: ConfigDict,
    workdir: Path,
    source: input_lib.Source | None = None,
    test_source: input_lib.Source | None = None,
) -> None:
    """Pre-trains as `config` says, in `workdir`; goes on from the last checkpoint there.

    Returns at the end of the run, or earlier when asked to stop by SIGINT or SIGTERM; in both
    cases with the state saved.

    Args:
      config: as from `config.default()`.
      workdir: the folder of the run; runs.py says what it will hold.
      source: images to train on, such as `input.from_arrays(...)`; config.data.source if None.
      test_source: with `source`, held-out images with labels for kNN.

    Raises:
      UserError: the config, the data or the folder cannot be used; training became non-finite;
        or it collapsed and `config.health.stop_on_collapse` is set.
    """
    if source is not None:
        config = config.copy_and_resolve_references()
        config.data.source = source.name
    config, warnings = config_lib.resolve(config)
    parallel.check_devices(config.batch_size, config.accum_steps)
    if source is None:
        source, test_source = data.open_sources(config)
    run = runs.describe(config, source)
    schedule = run.learning_rate()
    learner = run.learner(parallel.AXIS)

    with contextlib.ExitStack() as stack:
        stack.enter_context(runs.locked(workdir))
        runs.begin(workdir, run)
        stop = stack.enter_context(stop_requests())
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
        )
        saved_step = checkpoints.latest_step()
        start_step = saved_step or start.first_step(config, run.total_steps)
        progress = Progress(run.total_steps, start_step)
        stack.callback(progress.close)
        for line in (
            *introduction(run, learner, test_source, workdir, saved_step, start_step),
            *warnings,
        ):
            progress.say(line)
        if start_step >= run.total_steps:
            progress.say("This run is complete; there is nothing left to do.")
            return

        if saved_step:
            state = checkpoints.restore(saved_step, runs.abstract_state(learner, config))
        else:
            state = start.new_state(learner, config)
        state = parallel.replicate(state)
        update = parallel.update(learner)
        inspect = parallel.inspect_features(learner)
        embed = parallel.embedder(learner)
        monitor = health.CollapseMonitor(config.health.patience)
        metrics_file = Metrics(workdir, start_step)
        stack.callback(pictures.curves, workdir / "curves.png", workdir / "metrics.jsonl")
        stack.callback(metrics_file.close)

        batches = data.train_batches(config, source, start_step, run.total_steps)
        clock = Clock(config.batch_size)
        for step in range(start_step + 1, run.total_steps + 1):
            try:
                with clock.waiting():
                    batch = next(batches)
            except UserError:
                # An unreadable image: mended under the same name, the run goes on from here.
                if step > start_step + 1:
                    checkpoints.save(step - 1, state)
                raise
            if step == start_step + 1:
                progress.say("Compiling; the first step takes a while.")
                draw_views(workdir / "views.png", learner.policy, state, batch)
            state, metrics = update(state, batch)
            clock.count(metrics)
            progress.advance()

            leaving = stop.requested
            last = step == run.total_steps
            save = last or leaving or step % config.checkpoint.every_steps == 0
            knn = config.knn.every_steps and (last or step % config.knn.every_steps == 0)
            if not (save or knn or step % config.log_every_steps == 0):
                continue
            readings = {key: float(value) for key, value in parallel.local(metrics).items()}
            check_finite(step, readings, config.dtype, checkpoints.latest_step())
            readings |= clock.read()
            readings["epoch"] = step / run.steps_per_epoch
            readings["learning_rate"] = float(schedule(step - 1))  # the update began at step - 1
            if save:
                checkpoints.save(step, state)
            readings |= health.readings(*inspect(state, batch))
            if knn and test_source is not None:
                readings["knn_test_top1"] = knn_top1(config, source, test_source, embed, state)
            metrics_file.write(step, readings)
            progress.report(step, readings, clock.seconds_left(run.total_steps - step))
            collapse = monitor.update(step, readings["projection_std"], readings["projection_rank"])
            if collapse:
                progress.say(collapse)
                if config.health.stop_on_collapse:
                    checkpoints.save(step, state)
                    raise UserError(f"Stopped and saved at step {step}: the features collapsed.")
            clock.restart()
            if leaving:
                checkpoints.wait()
                progress.say(f"Stopped and saved at step {step}: the same command goes on from it.")
                return
        checkpoints.wait()
        progress.say(f"Done: {run.total_steps} steps.")


def introduction(
    run: runs.Run,
    learner: byol.Learner,
    test_source: input_lib.Source | None,
    workdir: Path,
    saved_step: int | None,
    start_step: int,
) -> Iterator[str]:
    """What is going to happen, in a few lines."""
    config, data = run.config, run.data
    classes = "no labels" if data["num_classes"] is None else f"{data['num_classes']} classes"
    yield (
        f"{data['name']}: {data['num_examples']} images, {classes}; {config.encoder.name} at "
        f"{config.data.image_size} pixels on {jax.device_count()} {jax.devices()[0].platform} "
        "device(s)"
    )
    batch = f"{config.batch_size} images"
    if config.accum_steps > 1:
        micro_batch = config_lib.micro_batch_size(config)
        batch += f" ({config.accum_steps} micro-batches of {micro_batch})"
    yield f"{run.total_steps} steps of {batch}, {run.steps_per_epoch} an epoch, in {workdir}"
    total, rate = run.total_steps, run.learning_rate()
    tau = "no target network"
    if learner.target is not None:
        tau = f"tau {learner.tau(0):g} at step 0, {learner.tau(total):g} at step {total}"
    steps = sorted({0, run.warmup_steps, total})
    rates = ", ".join(f"{rate(step):g} at step {step}" for step in steps)
    yield f"{config.optimizer.name}: learning rate {rates}; {tau}"
    if saved_step:
        yield f"Going on from the checkpoint of step {saved_step}."
    for key, path in config.init.items():
        if path and not saved_step:
            yield f"Starting from config.init.{key}={path}, at step {start_step}."
    if test_source is None and config.knn.every_steps:
        reason = "the data has no labels" if data["num_classes"] is None else "no data.test_split"
        yield f"No kNN while training: {reason}."


def draw_views(path: Path, policy: views.Policy, state: byol.State, batch: byol.Batch) -> None:
    """Writes the picture of the first view pairs of a batch, before and after augmentation."""
    few = byol.Batch(batch.views[:, :PICTURED_IMAGES], None, batch.positions[:PICTURED_IMAGES])
    augmented = np.stack(byol.augmented(policy, parallel.local(state), few))
    pictures.view_pairs(path, few.views, augmented * np.array(policy.std) + np.array(policy.mean))


def check_finite(step: int, readings: dict[str, float], dtype: str, last_good: int | None) -> None:
    """Raises UserError when an update's loss, gradient or result is NaN or infinite."""
    for key in ("loss", "gradient_norm", "parameter_norm"):
        if math.isfinite(readings[key]):
            continue
        kept = "no checkpoint had been saved"
        if last_good is not None:
            kept = f"the checkpoint of step {last_good} is good and was kept"
        precision = "" if dtype == "float32" else ", or config.dtype=float32,"
        raise UserError(
            f"The {key.replace('_', ' ')} at step {step} is {readings[key]}; {kept}. Try a lower "
            "config.optimizer.base_learning_rate, a longer config.optimizer.warmup_epochs"
            f"{precision} in a new --workdir."
        )


def knn_top1(
    config: ConfigDict,
    source: input_lib.Source,
    test_source: input_lib.Source,
    embed: Callable[[byol.State, np.ndarray, int], np.ndarray],
    state: byol.State,
) -> float:
    """Accuracy of weighted kNN on held-out images, both sets cut to the config's sizes."""

    def features(source: input_lib.Source, limit: int) -> tuple[np.ndarray, np.ndarray]:
        return evaluate.collect(
            lambda images: embed(state, images, data.eval_batch_size(config)),
            data.eval_batches(config, source, limit=limit),
        )

    result = evaluate.knn(
        *features(source, config.knn.train_examples),
        *features(test_source, config.knn.test_examples),
        num_classes=source.num_classes,
        ks=(KNN_NEIGHBOURS,),
    )
    return result["top1"]
