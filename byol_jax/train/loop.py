"""The training loop: for each batch, update; then log, evaluate and save when it is time.

Of several processes all run this loop in step: their decisions depend on values that are the same
on all of them (metrics, signals, features for health), or are those of process 0 (the score of an
evaluation). Process 0 alone writes and logs.
"""

import jax
from ml_collections import ConfigDict

from byol_jax import byol, data, parallel
from byol_jax.errors import DataError, UserError
from byol_jax.runs import inputs, kinds, paths, processes
from byol_jax.train import console, nonfinite, plots
from byol_jax.train.metrics import score as score_of
from byol_jax.train.setup import RunContext, run_context

NO_PROGRESS = "the last config.evaluation.patience evaluations did not improve on the best"


def train(
    config: ConfigDict,
    workdir: str | paths.AnyPath,
    source: data.Source | None = None,
    test_source: data.Source | None = None,
    cpu_devices: int | None = None,
) -> bool:
    """Pre-trains in `workdir`, from the last checkpoint there if there is one.

    Ends with the run, or earlier on SIGINT or SIGTERM to any process; the state is saved in both
    cases. Outside of the main thread, signals are not handled.

    Args:
      config: a config such as `runs.config.default()` with data and length.
      workdir: the folder of the run; runs/run.py lists its content.
      source: images to train on, such as `data.from_arrays(...)`; those of the config if None.
      test_source: with `source`, held-out images with labels, for kNN and the probe.
      cpu_devices: devices that JAX divides a CPU into, unless it has started. By default as many as
        the run in `workdir` had; in a new run `backend.most_cpu_devices` of a micro-batch, or one
        in each of several processes.

    Returns:
      Whether the run is complete, or ended early by `config.evaluation.patience`.

    Raises:
      UserError: the config, the data or the folder cannot be used; training became non-finite; the
        features collapsed and `config.health.stop_on_collapse` is set; or another process was lost.
    """
    with run_context(config, workdir, source, test_source, cpu_devices) as ctx:
        if ctx.start.step >= ctx.run.total_steps:
            ctx.progress.log("This run is complete; there is nothing left to do.")
        elif ctx.early_stopping.is_due:
            ctx.progress.log(f"This run ended early, at step {ctx.start.step}: {NO_PROGRESS}.")
        else:
            return loop(ctx)
        return True


def loop(ctx: RunContext) -> bool:
    """Trains from `ctx.start` to the end of the run; returns whether it got there."""
    config, total, log = ctx.run.config, ctx.run.total_steps, ctx.progress.log
    done, state = ctx.start.step, parallel.replicate(ctx.start.state)
    update = parallel.update(ctx.learner, nonfinite.step_fn(config.on_nonfinite == "skip"))
    batches = inputs.train_batches(config, ctx.source, done, total, ctx.decode_errors)
    in_flight = None  # metrics and signals of the last update, until somebody waits for them
    try:
        for step in range(done + 1, total + 1):
            row = {}
            with ctx.timer.waiting():
                batch = next(batches)
            if step == ctx.start.step + 1:
                log("Compiling; the first step takes a while.")
                draw_views(ctx, state, batch)
            state, metrics, signals = update(state, batch, ctx.request())
            done = step
            if ctx.timer.start_update(metrics):
                log(console.first_step_time(ctx.timer, ctx.compilations))
            ctx.progress.advance(step)
            # The device is busy with this update while the signals of the one before are read.
            request = ctx.finish_update(step - 1, *in_flight) if in_flight else parallel.NO_REQUEST
            in_flight = metrics, signals

            is_last = step == total
            evaluators = [f for every, f in ctx.evaluators if is_due(step, every, is_last)]
            should_save = is_due(step, config.checkpoint.every_steps, is_last)
            should_save = should_save or step == ctx.run.cooldown_start
            should_log = should_save or evaluators or is_due(step, config.log_every_steps)
            if not (should_log or request):
                continue
            request = max(request, ctx.finish_update(step, *in_flight))
            in_flight, collapsed, score = None, False, None
            rates = ctx.timer.rates(config.batch_size)  # before what is not training
            # Not on request alone, which must leave no trace in the metrics and the health checks.
            if should_log:
                ctx.checkpoints.check()
                row = ctx.collector.collect(step, metrics, state, batch) | rates
                warning = ctx.monitor.check(step, row["projection_std"], row["projection_rank"])
                for evaluate in evaluators:
                    row |= evaluate(step, state)
                if ctx.writer:
                    ctx.writer.write(step, row)
                if evaluators:  # each process has computed it, and may have rounded otherwise
                    score = processes.from_first(score_of(row))
                should_save = should_save or ctx.is_best(score)
                if score is not None:
                    ctx.early_stopping.add(score)
                collapsed = config.health.stop_on_collapse and ctx.monitor.has_collapsed
            ends_early = ctx.early_stopping.is_due and not is_last
            if should_save or request or collapsed or ends_early:
                ctx.save(step, state, score)
            if should_log:
                ctx.progress.report(step, row, ctx.timer.seconds_left(total - step))
                if warning:
                    log(warning)
            if collapsed:
                ctx.checkpoints.wait()
                raise UserError(f"Stopped and saved at step {step}: the features collapsed.")
            if ends_early:
                log(f"Ended early and saved at step {step}: {NO_PROGRESS}.")
                break
            ctx.timer.restart()
            if request == parallel.STOP and not is_last:
                ctx.checkpoints.wait()
                log(f"Stopped and saved at step {step}; the same command resumes from it.")
                log(console.throughput_summary(ctx.timer, config, ctx.source))
                return False
    except DataError:
        # An image cannot be decoded. Once it is repaired, the run resumes from here. With several
        # processes the others do not know, and a process cannot save alone.
        if done > ctx.start.step and jax.process_count() == 1:
            if in_flight:
                ctx.finish_update(done, *in_flight)
            if row:
                ctx.writer.write(done, row)
            ctx.save(done, state)
        raise
    ctx.checkpoints.wait()
    log(f"Done: {done} steps. {console.throughput_summary(ctx.timer, config, ctx.source)}")
    return True


def is_due(step: int, every: int, is_last: bool = False) -> bool:
    """Whether something done every so many steps (0: never) is due, or is at the last step."""
    return every > 0 and (is_last or step % every == 0)


def draw_views(ctx: RunContext, state: byol.State, batch: byol.Batch) -> None:
    """Draws views.png, on process 0."""
    if processes.is_first():
        try:
            plots.first_views(
                ctx.workdir / "views.png", kinds.of(ctx.run.config), ctx.learner, state, batch
            )
        except UserError as error:  # not a reason to fail
            ctx.progress.log(f"No picture of the views: {error}")
