"""What a run measures, and the files that it writes on the way.

metrics.jsonl         one line for each logged step, also as TensorBoard events
decode_errors.jsonl   one line for each replaced image and step (config.data.on_decode_error=skip)
"""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, data, evaluate, parallel
from byol_jax.errors import CheckpointError
from byol_jax.evaluate import label_free, linear
from byol_jax.runs import inputs, processes
from byol_jax.runs import run as run_lib
from byol_jax.runs.paths import AnyPath, is_local, translate_write_errors, write_atomically
from byol_jax.train import health
from byol_jax.train.trackers import BackgroundTracker

KNN_NEIGHBOURS = 20
NAMED_IMAGES = 5  # in the summary of decode errors

Evaluator = Callable[[int, byol.State], dict[str, float]]  # (step, state) -> value by name


class MetricsCollector:
    """Collects the metrics of one step; every process collects the same."""

    def __init__(self, run: run_lib.Run, learner: byol.Learner):
        self._steps_per_epoch = run.steps_per_epoch
        self._learning_rate = jax.jit(run.learning_rate())
        self._features = parallel.gather_rows(learner, health.features)

    def collect(
        self, step: int, metrics: byol.Metrics, state: byol.State, batch: byol.Batch
    ) -> dict[str, float]:
        """The metrics of an update, epoch and learning rate, and `health.feature_metrics`.

        Args:
          step: number of updates done.
          metrics: of the last update, as from `parallel.update`.
          state: after it, replicated.
          batch: that it received, on the devices.
        """
        values = {key: float(value) for key, value in parallel.local(metrics).items()}
        values["epoch"] = step / self._steps_per_epoch
        values["learning_rate"] = float(self._learning_rate(step - 1))  # of the last update
        return values | health.feature_metrics(*self._features(state, batch))


def evaluator(
    run: run_lib.Run,
    learner: byol.Learner,
    source: data.Source,
    test_source: data.Source | None,
    decode_errors: "DecodeErrorLog | None",
) -> Evaluator:
    """An evaluator of the encoder: RankMe and alpha-ReQ of training images, without labels.

    With a test source also the accuracy on its images, by weighted kNN and by the online probe.
    Both splits are limited to the config's sizes. Images that cannot be decoded are left out and
    logged, or without `decode_errors` raise DataError.
    """
    config, embedder = run.config, parallel.embedder(learner)
    batch_size = inputs.eval_batch_size(config)

    def evaluator(step: int, state: byol.State) -> dict[str, float]:
        embed = embedder(state)
        on_decode_error = None
        if decode_errors is not None:  # all processes meet the same, and process 0 logs them
            is_first = processes.is_first()
            on_decode_error = partial(decode_errors, step) if is_first else lambda name: None

        def features(source: data.Source, limit: int) -> tuple[np.ndarray, np.ndarray]:
            batches = inputs.eval_batches(
                config, source, limit=limit, on_decode_error=on_decode_error
            )
            count = min(limit, source.num_examples)
            return evaluate.collect(lambda images: embed(images, batch_size), batches, count)

        train = features(source, config.evaluation.train_examples)
        measured = label_free.spectrum(train[0])
        if test_source is None:
            return measured
        test = features(test_source, config.evaluation.test_examples)
        classes = source.num_classes
        knn = evaluate.knn(*train, *test, num_classes=classes, ks=(KNN_NEIGHBOURS,))
        probe = parallel.local(state.online_params["probe"])
        probed = linear.classify(probe["kernel"], probe["bias"], *test)
        return measured | {"knn_test_top1": knn["top1"], "probe_test_top1": probed["top1"]}

    return evaluator


def score(row: dict[str, float]) -> float | None:
    """How good an evaluated encoder is: its accuracy by kNN, or without labels its RankMe."""
    return row.get("knn_test_top1", row.get("rankme"))


def score_name(config: ConfigDict, *, has_labels: bool) -> str:
    """What `score` is of: only scores of one name can be compared."""
    examples = config.evaluation.train_examples  # with which RankMe grows
    return "knn" if has_labels else f"rankme_of_{examples}"


class JsonLines:
    """A file of JSON objects, one a line, each with a "step", that resumes with its run.

    Outside of local file systems (gs://), where a file cannot be appended to, `flush` writes it.
    """

    def __init__(self, path: AnyPath, start_step: int):
        """Drops the lines after `start_step`: the run makes those steps again."""
        self.path = path
        rows = [row for row in read_rows(path) if row["step"] <= start_step]
        self._lines = [json.dumps(row) + "\n" for row in rows]
        if path.exists():
            self.rewrite()

    def append(self, row: dict) -> None:
        """Adds a line."""
        self._lines.append(json.dumps(row) + "\n")
        if is_local(self.path):
            with translate_write_errors(self.path), self.path.open("a") as file:
                file.write(self._lines[-1])
                file.flush()
                os.fsync(file.fileno())

    def flush(self) -> None:
        """Writes what `append` could not."""
        if not is_local(self.path):
            self.rewrite()

    def rewrite(self) -> None:
        """Writes the complete file."""
        write_atomically(self.path, "".join(self._lines).encode())


def read_rows(path: AnyPath) -> list[dict]:
    """The objects of a file of JSON lines, without a last line that was cut short; [] if no file.

    Raises:
      CheckpointError: the file cannot be read, or another line has no "step".
    """
    try:
        rows, lines = [], path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): move it away.") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines):
                break
            raise CheckpointError(
                f"line {number} of {path} was not written by this program: move the file away."
            ) from None
        rows.append(row)
    return rows


class EventsFile:
    """The metrics for TensorBoard, written by the thread that calls.

    The usual writers (TensorBoard's, tensorboardX's, PyTorch's) have a thread of their own, which
    ends where the disk is full: the run would then wait for it forever.
    """

    def __init__(self, folder: AnyPath, purge_step: int):
        """Makes a file in a local folder; it hides events of earlier files from `purge_step` on."""
        # Late: it need not delay the first step.
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._folder = event_pb2.Event, folder
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        with translate_write_errors(folder):
            self._records = RecordWriter(open(folder / name, "xb"))  # noqa: SIM115 (see close)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=start)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        values = [{"tag": key, "simple_value": value} for key, value in metrics.items()]
        self._write(step=step, summary={"value": values})

    def _write(self, **event: Any) -> None:
        with translate_write_errors(self._folder):
            self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())
            self._records.flush()

    def close(self) -> None:
        """Closes the file."""
        with translate_write_errors(self._folder):
            self._records.close()


class MetricsWriter:
    """Writes metrics.jsonl and TensorBoard events, the latter to local folders only.

    Trackers receive the same, and at the start what metrics.jsonl has: they skip what they know.
    """

    def __init__(
        self, workdir: AnyPath, start_step: int, trackers: Sequence[BackgroundTracker] = ()
    ):
        self._trackers = trackers
        self._file = JsonLines(workdir / "metrics.jsonl", start_step)
        self._file.rewrite()
        self._workdir, self._start_step = workdir, start_step
        self._events: EventsFile | None = None
        for row in read_rows(workdir / "metrics.jsonl") if trackers else ():
            step = row.pop("step")
            self._track(step, {key: float("nan") if x is None else x for key, x in row.items()})

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step; NaN and infinity, which JSON lacks, become null."""
        metrics = {key: float(value) for key, value in metrics.items()}
        row = {key: x if abs(x) < float("inf") else None for key, x in metrics.items()}
        self._file.append({"step": step, **row})
        self._track(step, metrics)
        if not is_local(self._workdir):
            return
        if self._events is None:
            self._events = EventsFile(self._workdir, self._start_step + 1)
        self._events.write(step, metrics)

    def _track(self, step: int, metrics: dict[str, float]) -> None:
        for tracker in self._trackers:
            tracker.write(step, metrics)

    def flush(self) -> None:
        """Writes out all metrics; call it before a checkpoint is saved."""
        self._file.flush()

    def close(self) -> None:
        """Writes out all metrics and events."""
        self.flush()
        if self._events is not None:
            self._events.close()


class DecodeErrorLog:
    """Logs the images that could not be decoded and were replaced or left out.

    Each process has its own file, decode_errors.PROCESS.jsonl for all but the first, with lines
    such as {"step": 7, "image": "PATH: reason"}. The summary covers all files.
    """

    def __init__(self, folder: AnyPath, start_step: int):
        self._folder, process = folder, jax.process_index()
        name = f"decode_errors.{process}.jsonl" if process else "decode_errors.jsonl"
        self._file = JsonLines(folder / name, start_step)
        if process == 0:
            for path in folder.glob("decode_errors.*.jsonl"):
                number = path.name.split(".")[1]
                if number.isdigit() and int(number) >= jax.process_count():  # of an earlier start
                    JsonLines(path, start_step)
        self._logged = (start_step, set())  # a step and its images

    def __call__(self, step: int, image: str) -> None:
        """Adds an image that update number `step` could not use; once for each step."""
        if step != self._logged[0]:
            self._logged = (step, set())
        if image not in self._logged[1]:
            self._logged[1].add(image)
            self._file.append({"step": step, "image": image})
            self._file.flush()

    def summary(self) -> str:
        """A line with the number of images, the first of them, and the files that list all."""
        paths = sorted(self._folder.glob("decode_errors*.jsonl"))
        rows = [row for path in paths for row in read_rows(path)]
        if not rows:
            return "All images could be decoded."
        images = list(dict.fromkeys(str(row.get("image")) for row in rows))  # in order of step
        times = f"{len(rows)} time{'s' if len(rows) > 1 else ''}"
        different = f"{len(images)} different one{'s' if len(images) > 1 else ''}"
        more = f"; and {len(images) - NAMED_IMAGES} more" if len(images) > NAMED_IMAGES else ""
        return (
            f"Images that could not be decoded were replaced {times}, {different} "
            f"({'; '.join(images[:NAMED_IMAGES])}{more}): {', '.join(map(str, paths))} lists them."
        )
