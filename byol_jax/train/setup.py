"""Everything that the training loop works with, made before its first step."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from byol_jax import backend, byol, data, parallel
from byol_jax.backend.compile_cache import Compilations
from byol_jax.errors import UserError
from byol_jax.runs import config as config_lib
from byol_jax.runs import inputs, kinds, paths, processes
from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints, Restored, RetentionPolicy
from byol_jax.runs.resolve import resolve
from byol_jax.train import console, init_from, metrics, plots, trackers
from byol_jax.train.early_stopping import EarlyStopping
from byol_jax.train.health import CollapseMonitor
from byol_jax.train.metrics import (
    DecodeErrorLog,
    Evaluator,
    MetricsCollector,
    MetricsWriter,
    evaluator,
)
from byol_jax.train.nonfinite import NonFiniteGuard
from byol_jax.train.signals import StopRequest, stop_requests
from byol_jax.train.timer import SaveTimer, Timer


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What the loop works with. Of several processes, each has its own."""

    run: run_lib.Run
    learner: byol.Learner
    workdir: paths.AnyPath
    source: data.Source
    start: Restored  # the state to start from
    checkpoints: Checkpoints
    guard: NonFiniteGuard
    monitor: CollapseMonitor
    score_name: str  # of `metrics.score`
    early_stopping: EarlyStopping
    collector: MetricsCollector
    evaluators: list[tuple[int, Evaluator]]  # each with the steps between its calls
    writer: MetricsWriter | None  # of process 0
    decode_errors: DecodeErrorLog | None  # with config.data.on_decode_error=skip
    progress: console.Progress
    stop: StopRequest
    timer: Timer
    save_timer: SaveTimer
    compilations: Compilations

    def request(self) -> int:
        """What this process requests of all processes with the next update."""
        if self.stop.requested:
            return parallel.STOP
        is_due = processes.is_first() and self.save_timer.is_due()
        return parallel.SAVE if is_due else parallel.NO_REQUEST

    def finish_update(self, step: int, metrics: byol.Metrics, signals: tuple) -> int:
        """Waits for an update and returns what any process requested with it.

        Raises:
          UserError: the update was not finite, and the run has to end.
        """
        metrics, (request, is_finite) = parallel.local((metrics, signals))
        message = self.guard.check(step, metrics, bool(is_finite), self._last_checkpoint)
        if message:
            self.progress.log(message)
        return int(request)

    def _last_checkpoint(self) -> int | None:
        self.checkpoints.wait()
        return self.checkpoints.latest_step()

    def is_best(self, score: float | None) -> bool:
        """Whether a score is above that of all checkpoints, and the best is kept."""
        if score is None or not self.run.config.checkpoint.keep_best:
            return False
        best = self.checkpoints.best_score()
        return best is None or score > best

    def save(self, step: int, state: byol.State, score: float | None = None) -> None:
        """Saves a state in the background, and with it what the loop counts."""
        if self.writer:
            self.writer.flush()  # the lines up to a checkpoint must outlive the process
        counts = {
            "skipped_in_a_row": self.guard.skipped_in_a_row,
            "collapsed_checks": self.monitor.collapsed_checks,
        }
        if self.early_stopping.best > -float("inf"):
            counts[f"best_{self.score_name}"] = self.early_stopping.best
            counts[f"worse_than_{self.score_name}"] = self.early_stopping.worse
        self.checkpoints.save(step, state, counts, score)
        self.save_timer.restart()


@contextlib.contextmanager
def run_context(
    config: ConfigDict,
    workdir: str | paths.AnyPath,
    source: data.Source | None,
    test_source: data.Source | None,
    cpu_devices: int | None = None,
) -> Iterator[RunContext]:
    """Opens the data and the folder of a run, and restores or makes its state: see `loop.train`.

    When the context ends, checkpoints and metrics are complete, and the curves are drawn.
    """
    on_all = processes.run_on_all_processes
    with contextlib.ExitStack() as stack:
        timer = stack.enter_context(Timer())
        compilations = stack.enter_context(Compilations())
        stack.enter_context(processes.translate_errors())
        stop = stack.enter_context(stop_requests())

        # What is trained, checked before anything is written.
        if source is not None:
            config = config.copy_and_resolve_references()
            config.data.source = source.name
        config, warnings = resolve(config)
        workdir = paths.path(workdir) if isinstance(workdir, str) else workdir
        _use_cpu_devices(config, workdir, cpu_devices)
        on_all(lambda: backend.check_convolution(config.cpu_convolution, config.dtype))
        on_all(lambda: trackers.check(config) if processes.is_first() else None)
        parallel.check_devices(config.batch_size, config.accum_steps)
        kind, is_given = kinds.of(config), source is not None
        if not is_given:
            source = on_all(lambda: inputs.open_split(config, config.data.train_split))
        on_all(lambda: kind.fit_to(config, source))
        config, _ = resolve(config)  # what it filled in must work, too
        if not is_given:
            test_source = on_all(lambda: inputs.open_test(config, source))
        elif test_source is not None:
            on_all(lambda: kind.check_source(config, test_source))
            test_source = on_all(lambda: data.match_classes(source, test_source))
        run = run_lib.make_run(config, source)
        processes.check_same("settings or data", run_lib.fingerprint(run))
        learner = on_all(lambda: run.learner(parallel.AXIS, for_training=True))

        # The folder, and the state to start from.
        config_changes = on_all(lambda: _prepare_workdir(stack, workdir, run, source))
        processes.check_shared(workdir)
        # Ends after the checkpoints are complete: it may wait for a network.
        after_saving = stack.enter_context(contextlib.ExitStack())
        keep = config.checkpoint
        score_name = metrics.score_name(config, has_labels=test_source is not None)
        best = score_name if keep.keep_best else ""
        policy = RetentionPolicy(keep.keep, keep.keep_every_steps, best, run.cooldown_start)
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", policy))
        progress = console.Progress(run.total_steps, quiet=not processes.is_first())
        stack.callback(progress.close)
        start = checkpoints.restore_newest(run_lib.abstract_state(learner, config), progress.log)
        if start is None:
            first = on_all(lambda: init_from.first_step(config, run.total_steps))
        else:
            first = start.step
        processes.check_same("state to start from", str(first))
        console.log_run_summary(progress.log, run, learner, workdir, first, start is not None)
        if test_source is None and config.evaluation.every_steps:
            reason = "no data.test_split" if source.num_classes else "the data has no labels"
            progress.log(f"No kNN while training: {reason}. RankMe judges the encoder instead.")
        for line in (*source.warnings, *warnings, *config_changes):
            progress.log(line)
        if start is None:
            state = on_all(lambda: init_from.new_state(learner, config, first))
            start = Restored(first, state, {})
        checks = int(start.loop_state.get("collapsed_checks", 0))
        monitor = CollapseMonitor(config, checks)
        if config.health.stop_on_collapse and monitor.has_collapsed:
            raise UserError(
                f"The features had collapsed when this run was saved at step {first}: start from "
                "scratch with other settings in another --workdir, or train on with "
                "--config.health.stop_on_collapse=False."
            )

        # What is measured and written.
        writer, decode_errors, evaluators = None, None, []
        if config.data.on_decode_error == "skip":
            decode_errors = DecodeErrorLog(workdir, first)
        if config.evaluation.every_steps:
            evaluate = evaluator(run, learner, source, test_source, decode_errors)
            evaluators.append((config.evaluation.every_steps, evaluate))
        if processes.is_first():
            tracked = trackers.open_trackers(run, workdir, stop, progress.log)
            writer = MetricsWriter(workdir, first, after_saving.enter_context(tracked))
            stack.callback(_draw_curves, workdir, progress)
            stack.callback(writer.close)
            if decode_errors:
                stack.callback(lambda: progress.log(decode_errors.summary()))
        yield RunContext(
            run=run,
            learner=learner,
            workdir=workdir,
            source=source,
            start=start,
            checkpoints=checkpoints,
            guard=NonFiniteGuard(config, int(start.loop_state.get("skipped_in_a_row", 0))),
            monitor=monitor,
            score_name=score_name,
            early_stopping=EarlyStopping(
                config.evaluation.patience,
                start.loop_state.get(f"best_{score_name}", -float("inf")),
                int(start.loop_state.get(f"worse_than_{score_name}", 0)),
            ),
            collector=MetricsCollector(run, learner),
            evaluators=evaluators,
            writer=writer,
            decode_errors=decode_errors,
            progress=progress,
            stop=stop,
            timer=timer,
            save_timer=SaveTimer(config.checkpoint.every_minutes),
            compilations=compilations,
        )


def _use_cpu_devices(config: ConfigDict, workdir: paths.AnyPath, requested: int | None) -> None:
    """Makes the CPU devices of a run, before JAX starts: see `loop.train`.

    Raises:
      ConfigError: JAX has another number than the requested one.
    """
    if requested is not None:
        backend.use_cpu_devices(requested)
        backend.check_cpu_devices(requested)
    elif not jax.distributed.is_initialized():  # else one device for each process
        most = backend.most_cpu_devices(config_lib.micro_batch_size(config))
        backend.use_cpu_devices(run_lib.cpu_devices(workdir) or most)


def _prepare_workdir(
    stack: contextlib.ExitStack, workdir: paths.AnyPath, run: run_lib.Run, source: data.Source
) -> list[str]:
    """On process 0, locks the folder and writes config.json; returns lines about changes."""
    if not processes.is_first():
        return []
    stack.enter_context(run_lib.lock_workdir(workdir))
    return run_lib.prepare_workdir(workdir, run, source.order_depends_on_processes)


def _draw_curves(workdir: paths.AnyPath, progress: console.Progress) -> None:
    try:
        plots.curves(workdir / "curves.png", workdir / "metrics.jsonl")
    except UserError as error:  # not a reason to fail
        progress.log(f"No curves: {error}")
