"""The training loop: for each batch, update; then read, evaluate and save when it is time."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, evaluate, health, parallel, pictures, runs, views
from byol_jax import config as config_lib
from byol_jax import input as input_lib
from byol_jax.checkpoint import Checkpoints
from byol_jax.errors import UserError
from byol_jax.evaluate.features import collect
from byol_jax.writers import Metrics, Progress

KNN_NEIGHBOURS = 20
PICTURED_IMAGES = 8
HEALTH_EXAMPLES = 512  # enough to tell a rank of 1 from a rank of 100, and cheap to decompose


def train(config: ConfigDict, workdir: Path) -> None:
    """Pre-trains as `config` says, in `workdir`; goes on from the last checkpoint there.

    Returns at the end of the run, or earlier when asked to stop by SIGINT or SIGTERM; in both
    cases with the state saved.

    Raises:
      UserError: the config, the data or the folder cannot be used; training became non-finite;
        or it collapsed and `config.health.stop_on_collapse` is set.
    """
    config, warnings = config_lib.resolve(config)
    parallel.check_batch_size(config.batch_size)
    source, test_source = open_sources(config)
    run = describe_run(config, source)
    schedule = run.learning_rate()
    learner = run.learner(parallel.AXIS)
    runs.begin(workdir, run)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
        )
        start_step = checkpoints.latest_step() or 0
        first_host = parallel.host()[0] == 0
        progress = Progress(run.total_steps, start_step, quiet=not first_host)
        stack.callback(progress.close)
        for line in (*introduction(run, test_source, workdir, start_step), *warnings):
            progress.say(line)
        if start_step >= run.total_steps:
            progress.say("This run is complete; there is nothing left to do.")
            return

        if start_step:
            state = checkpoints.restore(start_step, runs.abstract_state(learner, config))
        else:
            state = runs.initial_state(learner, config)
        state = parallel.replicate(state)
        update = parallel.update(learner)
        inspect = parallel.inspect_features(learner)
        embed = parallel.embedder(learner)
        monitor = health.CollapseMonitor(config.health.patience)
        metrics_file = None
        if first_host:
            metrics_file = Metrics(workdir, start_step)
            stack.callback(pictures.curves, workdir / "curves.png", workdir / "metrics.jsonl")
            stack.callback(metrics_file.close)

        batches = train_batches(run, source, start_step)
        clock = Clock(config.batch_size)
        for step in range(start_step + 1, run.total_steps + 1):
            with clock.waiting():
                batch = next(batches)
            if step == start_step + 1 and first_host:
                draw_views(workdir / "views.png", learner.policy, state, batch)
            state, metrics = update(state, batch)
            clock.count(metrics)
            progress.advance()

            last = step == run.total_steps or stop.requested
            save = last or step % config.checkpoint.every_steps == 0
            knn = config.knn.every_steps and (last or step % config.knn.every_steps == 0)
            if not (save or knn or step % config.log_every_steps == 0):
                continue
            readings = {key: float(value) for key, value in parallel.local(metrics).items()}
            readings |= clock.read()
            readings["epoch"] = step / run.steps_per_epoch
            readings["learning_rate"] = float(schedule(step - 1))  # the update began at step - 1
            check_finite(step, readings, checkpoints.latest_step())
            if save:
                checkpoints.save(step, state)
            readings |= feature_health(*inspect(state, batch))
            if knn and test_source is not None and first_host:
                readings["knn_test_top1"] = knn_top1(config, source, test_source, embed, state)
            if metrics_file:
                metrics_file.write(step, readings)
            progress.report(step, readings, clock.seconds_left(run.total_steps - step))
            collapse = monitor.update(step, readings["projection_std"], readings["projection_rank"])
            if collapse:
                progress.say(collapse)
                if config.health.stop_on_collapse:
                    checkpoints.save(step, state)
                    raise UserError(f"Stopped and saved at step {step}: the features collapsed.")
            clock.restart()
            if stop.requested:
                progress.say(f"Stopped and saved at step {step}: the same command goes on from it.")
                return
        progress.say(f"Done: {run.total_steps} steps.")


def open_sources(config: ConfigDict) -> tuple[input_lib.Source, input_lib.Source | None]:
    """The training images, and the held-out ones for kNN where the config names them."""

    def open_split(split: str) -> input_lib.Source:
        return input_lib.open_source(
            config.data.source,
            split,
            data_dir=config.data.dir or None,
            channels=config.data.channels,
        )

    source = open_split(config.data.train_split)
    if source.num_classes is None or not config.data.test_split or not config.knn.every_steps:
        return source, None
    return source, open_split(config.data.test_split)


def describe_run(config: ConfigDict, source: input_lib.Source) -> runs.Run:
    """The run of a resolved config on its training images."""
    data = {
        "name": source.name,
        "num_examples": source.num_examples,
        "num_classes": source.num_classes,
        "class_names": None if source.class_names is None else list(source.class_names),
    }
    return runs.Run(config, data, input_lib.steps_per_epoch(source, config.batch_size))


def introduction(
    run: runs.Run, test_source: input_lib.Source | None, workdir: Path, start_step: int
) -> Iterator[str]:
    """What is going to happen, in a few lines."""
    config, data = run.config, run.data
    classes = "no labels" if data["num_classes"] is None else f"{data['num_classes']} classes"
    yield (
        f"{data['name']}: {data['num_examples']} images, {classes}; {config.encoder.name} at "
        f"{config.data.image_size} pixels on {jax.device_count()} {jax.devices()[0].platform} "
        "device(s)"
    )
    yield (
        f"{run.total_steps} steps of {config.batch_size} images ({run.steps_per_epoch} an epoch); "
        f"{config.optimizer.name} up to {config_lib.learning_rate_peak(config):g}, "
        f"tau {config.tau_base:g} to 1; everything goes to {workdir}"
    )
    if start_step:
        yield f"Going on from the checkpoint of step {start_step}."
    if test_source is None and config.knn.every_steps:
        reason = "the data has no labels" if data["num_classes"] is None else "no data.test_split"
        yield f"No kNN while training: {reason}."


def train_batches(run: runs.Run, source: input_lib.Source, start_step: int) -> Iterator[byol.Batch]:
    """This host's rows of the batches from `start_step` to the end of the run."""
    config = run.config
    host_index, host_count = parallel.host()
    return input_lib.train_batches(
        source,
        batch_size=config.batch_size,
        image_size=config.data.image_size,
        seed=config.seed,
        num_steps=run.total_steps,
        start_step=start_step,
        crop=input_lib.Crop(
            area=(config.crop.area_min, config.crop.area_max),
            ratio=(config.crop.ratio_min, config.crop.ratio_max),
            flip=config.crop.flip_prob,
        ),
        host_index=host_index,
        host_count=host_count,
    )


def draw_views(path: Path, policy: views.Policy, state: byol.State, batch: byol.Batch) -> None:
    """Writes the picture of the first view pairs of a batch, before and after augmentation."""
    few = byol.Batch(batch.views[:, :PICTURED_IMAGES], None, batch.positions[:PICTURED_IMAGES])
    augmented = np.stack(byol.augmented(policy, parallel.local(state), few))
    pictures.view_pairs(path, few.views, augmented * np.array(policy.std) + np.array(policy.mean))


def check_finite(step: int, readings: dict[str, float], last_good: int | None) -> None:
    """Raises UserError when the loss or the gradient of an update is NaN or infinite."""
    for key in ("loss", "gradient_norm"):
        if math.isfinite(readings[key]):
            continue
        kept = "no checkpoint had been saved"
        if last_good is not None:
            kept = f"the checkpoint of step {last_good} is good and was kept"
        raise UserError(
            f"The {key.replace('_', ' ')} at step {step} is {readings[key]}; {kept}. Try a lower "
            "config.optimizer.base_learning_rate, a longer config.optimizer.warmup_epochs, or "
            "config.dtype=float32, in a new --workdir."
        )


def feature_health(embeddings: np.ndarray, projections: np.ndarray) -> dict[str, float]:
    """Spread and effective rank of the embeddings and of the target's projections."""
    readings = {}
    for name, features in (("embedding", embeddings), ("projection", projections)):
        features = features[:HEALTH_EXAMPLES]
        readings[f"{name}_std"] = health.feature_std(features)
        readings[f"{name}_rank"] = health.effective_rank(features)
    return readings


def knn_top1(
    config: ConfigDict,
    source: input_lib.Source,
    test_source: input_lib.Source,
    embed: Callable[[byol.State, np.ndarray, int], np.ndarray],
    state: byol.State,
) -> float:
    """Accuracy of weighted kNN on held-out images, both sets cut to the config's sizes."""

    def split(source: input_lib.Source, limit: int) -> tuple[np.ndarray, np.ndarray]:
        batches = input_lib.eval_batches(
            source,
            batch_size=config.batch_size,
            image_size=config.data.image_size,
            crop_fraction=config.crop.test_fraction,
            limit=limit,
        )
        return collect(lambda images: embed(state, images, config.batch_size), batches)

    result = evaluate.knn(
        *split(source, config.knn.train_examples),
        *split(test_source, config.knn.test_examples),
        num_classes=source.num_classes,
        ks=(KNN_NEIGHBOURS,),
    )
    return result["top1"]


class Clock:
    """Images per second and the share of time spent waiting for input, between two readings."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._warm = False
        self.restart()

    def restart(self) -> None:
        """Forgets what was; evaluation and saving do not count as training."""
        self._start = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, metrics: dict[str, jax.Array]) -> None:
        """One step was started."""
        self._steps += 1
        if not self._warm:
            # The first step compiles, which is neither input nor training.
            jax.block_until_ready(metrics)
            self._warm = True
            self.restart()

    def read(self) -> dict[str, float]:
        """Readings since the restart; the last step's results must have been waited for."""
        if not self._steps:
            return {}
        self._elapsed = time.perf_counter() - self._start
        return {
            "images_per_second": self._steps * self._batch_size / self._elapsed,
            "input_wait_share": self._waited / self._elapsed,
        }

    def seconds_left(self, steps: int) -> float | None:
        """Time for so many more steps at the pace last read; None before there is one."""
        return self._elapsed / self._steps * steps if self._steps else None


class StopRequest:
    """Whether a signal has asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request; a second one acts as usual."""
    request = StopRequest()
    before = {}

    def note(signal_number: int, _frame: object) -> None:
        request.requested = True
        signal.signal(signal_number, before[signal_number])

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        before[signal_number] = signal.signal(signal_number, note)
    try:
        yield request
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
