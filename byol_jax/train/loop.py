"""The training loop: for each batch, update; then read, evaluate and save when it is time.

With several processes all run this loop in step: what they decide by is replicated (metrics, votes
to stop, features for health), or found the same by each (kNN). Process 0 alone writes and speaks.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, data, parallel
from byol_jax.data import on_device
from byol_jax.errors import UserError
from byol_jax.runs import config as config_lib
from byol_jax.runs import inputs, paths, processes
from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints, Restored, RetentionPolicy
from byol_jax.train import health, init_from, nonfinite, plots
from byol_jax.train.compile_cache import Compilations
from byol_jax.train.decode_error_log import DecodeErrorLog
from byol_jax.train.readings import MetricsCollector
from byol_jax.train.signals import StopRequest, stop_requests
from byol_jax.train.timer import INPUT_BOUND, Timer
from byol_jax.train.writers import Metrics, Progress

PICTURED_IMAGES = 8


def train(
    config: ConfigDict,
    workdir: paths.AnyPath,
    source: data.Source | None = None,
    test_source: data.Source | None = None,
) -> bool:
    """Pre-trains as `config` says, in `workdir`; goes on from the last checkpoint there.

    Ends with the run, or earlier when asked to stop by SIGINT or SIGTERM (any process of several);
    in both cases with the state saved.

    Args:
      config: as from `config.default()`.
      workdir: the folder of the run; run_lib.py says what it will hold.
      source: images to train on, such as `input.from_arrays(...)`; config.data.source if None.
      test_source: with `source`, held-out images with labels for kNN.

    Returns:
      Whether the run is complete.

    Raises:
      UserError: the config, the data or the folder cannot be used; training became non-finite;
        it collapsed and `config.health.stop_on_collapse` is set; or another process was lost.
    """
    with contextlib.ExitStack() as stack:
        clock = Timer()
        compilations = stack.enter_context(Compilations())
        stack.enter_context(processes.translate_errors())
        stop = stack.enter_context(stop_requests())
        if source is not None:
            config = config.copy_and_resolve_references()
            config.data.source = source.name
        config, warnings = config_lib.resolve(config)
        parallel.check_devices(config.batch_size, config.accum_steps)
        if source is None:
            source, test_source = processes.run_on_all_processes(
                lambda: inputs.open_sources(config)
            )
        config.data.placement = processes.run_on_all_processes(
            lambda: on_device.placement(config, source)
        )
        run = run_lib.make_run(config, source)
        total = run.total_steps
        processes.check_same("settings or data", run_lib.fingerprint(run))
        learner = run.learner(parallel.AXIS)
        news = processes.run_on_all_processes(lambda: begin(stack, workdir, run, source))
        processes.check_shared(workdir)
        keep = RetentionPolicy(
            config.checkpoint.keep, config.checkpoint.keep_every_steps, config.checkpoint.keep_best
        )
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", keep))
        progress = Progress(total, quiet=not processes.is_first())
        stack.callback(progress.close)
        saved = checkpoints.restore_newest(run_lib.abstract_state(learner, config), progress.say)
        first = (
            saved.step
            if saved
            else processes.run_on_all_processes(partial(init_from.first_step, config, total))
        )
        processes.check_same("state to start from", str(first))
        for line in (
            *introduction(run, learner, test_source, workdir, saved is not None, first),
            *source.warnings,
            *warnings,
            *news,
        ):
            progress.say(line)
        if first >= total:
            progress.say("This run is complete; there is nothing left to do.")
            draw_curves(workdir, progress)  # if it was killed before it could
            return True
        if saved is None:
            saved = Restored(
                first,
                processes.run_on_all_processes(lambda: init_from.new_state(learner, config, first)),
                {},
            )
        around = Surroundings(
            workdir, source, test_source, checkpoints, progress, stop, clock, compilations
        )
        return loop(run, learner, saved, around)


def begin(
    stack: contextlib.ExitStack, workdir: paths.AnyPath, run: run_lib.Run, source: data.Source
) -> list[str]:
    """Takes hold of the run's folder, on process 0; returns what to tell of it."""
    if not processes.is_first():
        return []
    stack.enter_context(run_lib.lock_workdir(workdir))
    return run_lib.prepare_workdir(workdir, run, source.order_depends_on_processes)


class Surroundings(NamedTuple):
    """What a run is made in."""

    workdir: paths.AnyPath
    source: data.Source
    test_source: data.Source | None
    checkpoints: Checkpoints
    progress: Progress
    stop: StopRequest
    clock: Timer
    compilations: Compilations


def loop(run: run_lib.Run, learner: byol.Learner, start: Restored, around: Surroundings) -> bool:
    """Makes the updates from a state to the end of the run; returns whether it got there."""
    config, total = run.config, run.total_steps
    workdir, source, test_source, checkpoints, progress, stop, clock, compilations = around
    update = parallel.update(learner, partial(nonfinite.update, skip=config.on_nonfinite == "skip"))
    state = parallel.replicate(start.state)
    finite = nonfinite.NonFiniteGuard(config, int(start.loop.get("skipped_in_a_row", 0)))
    bad = None
    if config.data.on_decode_error == "skip":
        bad = DecodeErrorLog(workdir, start.step, jax.process_index(), jax.process_count())
    collector = MetricsCollector(run, learner, source, test_source, bad)
    collapse = health.CollapseMonitor(
        config.health.patience, int(start.loop.get("bad_readings", 0))
    )

    def last_good() -> int | None:
        checkpoints.wait()
        return checkpoints.latest_step()

    def follow(step: int, metrics: byol.Metrics, signals: tuple) -> bool:
        """Waits for an update, looks at it, and returns whether to stop."""
        metrics, (stop_wanted, is_finite) = parallel.local((metrics, signals))
        said = finite.check(step, metrics, bool(is_finite), last_good)
        if said:
            progress.say(said)
        return bool(stop_wanted)

    def save(step: int, knn: float | None = None) -> None:
        if metrics_file:
            metrics_file.flush()  # before the checkpoint, after which its lines would be missing
        counts = {
            "skipped_in_a_row": finite.skipped_in_a_row,
            "bad_readings": collapse.bad_readings,
        }
        checkpoints.save(step, parallel.across_processes(state), counts, knn)

    with contextlib.ExitStack() as stack:
        metrics_file = None
        if processes.is_first():
            metrics_file = Metrics(workdir, start.step)
            stack.callback(draw_curves, workdir, progress)
            stack.callback(metrics_file.close)
        if bad and processes.is_first():
            stack.callback(lambda: progress.say(bad.summary() or "Every image could be read."))
        batches = inputs.train_batches(config, source, start.step, total, bad)
        running = None  # the metrics of the update before, where nobody has looked at them yet
        for step in range(start.step + 1, total + 1):
            try:
                with clock.waiting():
                    batch = next(batches)
            except UserError:
                # An unreadable image: mended under the same name, the run goes on from here. Of
                # several processes the others know nothing of it, and cannot save.
                if step > start.step + 1 and jax.process_count() == 1:
                    if running:
                        follow(step - 1, *running)
                    save(step - 1)
                raise
            if step == start.step + 1 and processes.is_first():
                progress.say("Compiling; the first step takes a while.")
                draw_views(workdir / "views.png", learner, state, batch, progress)
            state, metrics, signals = update(state, batch, stop.requested)
            if clock.count(metrics):
                progress.say(first_step(clock, compilations))
            progress.advance(step)

            leaving = follow(step - 1, *running) if running else False
            running = (metrics, signals)
            last = step == total
            every = config.knn.every_steps if test_source else 0
            evaluating = every > 0 and (last or due(step, every))
            saving = last or due(step, config.checkpoint.every_steps)
            reading = saving or evaluating or due(step, config.log_every_steps)
            if not (leaving or reading):
                continue
            running = None
            leaving = follow(step, metrics, signals) or leaving
            ending, readings = False, {}
            speed = clock.read(config.batch_size)  # before what takes time itself
            # Not for a stop: it must leave no trace in what is read, or counted by the monitor.
            if reading:
                checkpoints.check()
                readings = collector.collect(step, metrics, state, batch) | speed
                warning = collapse.update(
                    step, readings["projection_std"], readings["projection_rank"]
                )
                if evaluating:
                    try:
                        readings["knn_test_top1"] = collector.knn_top1(step, state)
                    except UserError:  # an unreadable image, as above
                        if jax.process_count() == 1:
                            if metrics_file:
                                metrics_file.write(step, readings)
                            save(step)
                        raise
                if metrics_file:
                    metrics_file.write(step, readings)
                ending = bool(warning) and config.health.stop_on_collapse
            if saving or leaving or ending:
                save(step, readings.get("knn_test_top1"))
            if reading:
                progress.report(step, readings, clock.seconds_left(total - step))
                if warning:
                    progress.say(warning)
            if ending:
                checkpoints.wait()
                raise UserError(f"Stopped and saved at step {step}: the features collapsed.")
            clock.restart()
            if leaving and not last:
                checkpoints.wait()
                progress.say(f"Stopped and saved at step {step}: the same command goes on from it.")
                progress.say(pace(clock, config, source))
                return False
        checkpoints.wait()
        progress.say(f"Done: {total} steps. {pace(clock, config, source)}")
        return True


def first_step(clock: Timer, compilations: Compilations) -> str:
    """How long it took to the end of the first step, and what part of that was compiling."""
    return (
        f"First step after {clock.since_start():.1f} s, of which {compilations.seconds:.1f} "
        f"compiling, or loading what was compiled before ({compilations.count} programs)."
    )


def pace(clock: Timer, config: ConfigDict, source: data.Source) -> str:
    """How fast the run was, and whether the input held it up: in which case, what to change."""
    rates = clock.of_the_run(config.batch_size)
    if not rates:
        return "Too few steps to tell a pace."
    share = rates["input_wait_share"]
    said = f"{rates['images_per_second']:.4g} images/s, {share:.0%} of the time waiting for input"
    if share <= INPUT_BOUND:
        return f"{said}."
    return f"{said}: the run was input-bound. {inputs.input_bound_hint(config, source)}"


def due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is done after this one; 0: never."""
    return every > 0 and step % every == 0


def draw_curves(workdir: paths.AnyPath, progress: Progress) -> None:
    """Draws the curves of metrics.jsonl, on process 0; a picture is not worth a run."""
    if processes.is_first():
        try:
            plots.curves(workdir / "curves.png", workdir / "metrics.jsonl")
        except UserError as error:
            progress.say(f"No curves: {error}")


def introduction(
    run: run_lib.Run,
    learner: byol.Learner,
    test_source: data.Source | None,
    workdir: paths.AnyPath,
    is_resumed: bool,
    first: int,
) -> Iterator[str]:
    """What is going to happen, in a few lines."""
    config, data = run.config, run.data
    classes = "no labels" if data["num_classes"] is None else f"{data['num_classes']} classes"
    yield (
        f"{data['name']}: {data['num_examples']} images, {classes}; {config.encoder.name} at "
        f"{config.data.image_size} pixels on {jax.device_count()} {jax.devices()[0].platform} "
        f"device(s); views are cut on the {config.data.placement}"
    )
    batch = f"{config.batch_size} images"
    if config.accum_steps > 1:
        micro_batch = config_lib.micro_batch_size(config)
        batch += f" ({config.accum_steps} micro-batches of {micro_batch})"
    yield f"{run.total_steps} steps of {batch}, {run.steps_per_epoch} an epoch, in {workdir}"
    total, rate = run.total_steps, run.learning_rate()
    tau = "no target network"
    if config.target_network:
        tau = f"tau {learner.tau(0):g} at step 0, {learner.tau(total):g} at step {total}"
    steps = sorted({0, run.warmup_steps, total})
    rates = ", ".join(f"{rate(step):g} at step {step}" for step in steps)
    yield f"{config.optimizer.name}: learning rate {rates}; {tau}"
    if is_resumed:
        yield f"Going on from the checkpoint of step {first}."
    for key, path in config.init.items():
        if path and not is_resumed:
            yield f"Starting from config.init.{key}={path}, at step {first}."
    if test_source is None and config.knn.every_steps:
        reason = "the data has no labels" if data["num_classes"] is None else "no data.test_split"
        yield f"No kNN while training: {reason}."


def draw_views(
    path: paths.AnyPath,
    learner: byol.Learner,
    state: byol.State,
    batch: byol.Batch,
    progress: Progress,
) -> None:
    """Writes the picture of the first view pairs of a batch, before and after augmentation."""
    few = parallel.first_rows(batch, PICTURED_IMAGES)
    # Compiled, as hundreds of small programs would take longer.
    augment = jax.jit(partial(byol.augment_batch, learner))
    augmented = np.stack(augment(byol.step_key(parallel.local(state)), few))
    policy = learner.augment
    augmented = augmented * np.array(policy.std) + np.array(policy.mean)
    try:
        plots.view_pairs(path, few.examples.swapaxes(0, 1), augmented)
    except UserError as error:  # a picture is not worth a run
        progress.say(f"No picture of the views: {error}")
