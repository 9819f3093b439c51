"""The metrics of a run at services that track experiments: config.log_to=wandb,mlflow.

Each service is used by a thread of its own, which takes rows from a queue: training waits for no
service, and an error of one ends that thread alone. metrics.jsonl stays the complete record, and a
service receives on each start the rows of it that it lacks.
"""

import contextlib
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ml_collections import ConfigDict

from byol_jax.data.optional import package
from byol_jax.errors import describe
from byol_jax.runs import config as config_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs import tree
from byol_jax.runs.paths import AnyPath, is_local, translate_write_errors, write_atomically
from byol_jax.train import wandb_files
from byol_jax.train.signals import StopRequest

FINISH_SECONDS = 20.0  # that the end of a run waits; schedulers kill 30 s after their signal
PROJECT = "byol_jax"  # of a run whose folder is in none with a name
MLFLOW_METRICS, MLFLOW_PARAMS, MLFLOW_TEXT = 1000, 100, 500  # limits of one request, and of a text

Row = tuple[int, dict[str, float]]  # a step and its metrics


class Description(NamedTuple):
    """What a service is told about a run."""

    id: str  # the same at each start
    project: str
    name: str
    config: dict[str, Any]  # as in config.json
    folder: Path | None  # for files of the service's package; None: its own choice


class Tracker(Protocol):
    """A run at a service. All of it may wait for the network, and raise anything."""

    label: str  # what the service is called in messages
    place: str  # where the run is found
    last_step: int  # the newest that the service had when the run was opened

    def __init__(self, about: Description):
        """Opens the run with this id, or makes it."""

    def write(self, rows: Sequence[Row]) -> None:
        """Sends metrics, in the order of their steps."""

    def close(self, status: str) -> None:
        """Ends the run, which is "finished", "stopped" (by a signal) or "failed"."""


class WandB:
    """A run of Weights & Biases, whose files are in RUN/wandb. Its environment variables hold.

    Steps have to increase there: what it received after the checkpoint that a run resumes from
    stays as it is.
    """

    label = "Weights & Biases"

    def __init__(self, about: Description):
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # else it asks for a missing key at the terminal
        self._run = wandb.init(
            id=about.id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", about.project),
            name=os.environ.get("WANDB_NAME", about.name),
            dir=about.folder,
            config=about.config,
            allow_val_change=True,  # settings that may change on resume
            reinit="create_new",  # the caller may have a run of its own
            # The output of the run is left alone.
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_SECONDS),
        )
        if self._run.offline:  # each start writes a file of its own
            folder = Path(self._run.settings.wandb_dir)
            self.place, self.last_step = str(folder), wandb_files.last_step(folder, about.id)
        else:
            self.place, self.last_step = self._run.url or "", self._run.starting_step - 1

    def write(self, rows: Sequence[Row]) -> None:
        """Sends metrics."""
        for step, metrics in rows:
            self._run.log(metrics, step=step)

    def close(self, status: str) -> None:
        """Ends the run, with the last metrics and the status as its summary."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status == "failed"))


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI; the run is found by a tag, byol_jax.id."""

    label = "MLflow"

    def __init__(self, about: Description):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", about.project)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        runs = client.search_runs([experiment], f"tags.`byol_jax.id` = '{about.id}'", max_results=1)
        if runs:
            client.update_run(runs[0].info.run_id, status="RUNNING")
        else:
            tags = {"byol_jax.id": about.id}
            runs = [client.create_run(experiment, run_name=about.name, tags=tags)]
        self._id, known = runs[0].info.run_id, runs[0].data.params
        params = [
            Param(key, str(value)[:MLFLOW_TEXT])
            for key, value in tree.flat(about.config).items()
            if key not in known  # which cannot be changed
        ]
        for start in range(0, len(params), MLFLOW_PARAMS):
            client.log_batch(self._id, params=params[start : start + MLFLOW_PARAMS])
        steps = [metric.step for metric in client.get_metric_history(self._id, "epoch")]
        self.last_step = max(steps, default=0)
        self.place = f"{client.tracking_uri}, experiment {name}, run {about.name}"

    def write(self, rows: Sequence[Row]) -> None:
        """Sends metrics."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        batch: list[Metric] = []
        for step, row in rows:  # whole rows: `last_step` tells them apart
            if len(batch) + len(row) > MLFLOW_METRICS:
                self._client.log_batch(self._id, batch)
                batch = []
            batch += [Metric(key, value, now, step) for key, value in row.items()]
        self._client.log_batch(self._id, batch)

    def close(self, status: str) -> None:
        """Ends the run."""
        names = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._id, names[status])


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandB, "mlflow": MLflow}


class BackgroundTracker:
    """A tracker in a thread of its own. Nothing here raises, or waits longer than it says."""

    def __init__(self, kind: type[Tracker], about: Description, log: Callable[[str], None]):
        """Starts the thread; `log` receives a line about the start, and about an error."""
        self._kind, self._about, self._log = kind, about, log
        self._queue: queue.SimpleQueue[Row | None] = queue.SimpleQueue()  # None: the end
        self._status = ""
        self._thread = threading.Thread(target=self._work, name=kind.label, daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Queues the metrics of a step."""
        if self._thread.is_alive():
            self._queue.put((step, metrics))

    def end(self, status: str) -> None:
        """Queues the end of the run."""
        self._status = status
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Waits until all is done, or this long."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._log(
                f"warning: {self._kind.label} was not done {FINISH_SECONDS:g} s after the end, and "
                "may lack the last metrics: the same command sends them."
            )

    def _work(self) -> None:
        try:
            tracker = self._kind(self._about)
            self._log(f"Metrics also go to {tracker.label}: {tracker.place or 'disabled'}.")
            for rows in self._batches():
                rows = [row for row in rows if row[0] > tracker.last_step]
                if rows:
                    tracker.write(rows)
            tracker.close(self._status)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            self._log(
                f"warning: {self._kind.label} gets no more metrics ({describe(error)}). "
                "metrics.jsonl has them, and the next start sends what is missing."
            )

    def _batches(self) -> Iterator[list[Row]]:
        """What was queued meanwhile, again and again until the end."""
        rows = []
        while None not in rows:
            rows = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    rows.append(self._queue.get_nowait())
            yield [row for row in rows if row is not None]


def check(config: ConfigDict) -> None:
    """Imports the packages that config.log_to needs; raises UserError if one is missing.

    Not in the threads, as two threads that import can meet half-imported modules. By a module in
    the package, because a folder of that name, such as other runs leave, can be imported too.
    """
    for name in config_lib.trackers(config):
        module = {"wandb": "wandb.sdk", "mlflow": "mlflow.entities"}[name]
        package(module, f"runs with config.log_to={name}", name)


@contextlib.contextmanager
def open_trackers(
    run: run_lib.Run, workdir: AnyPath, stop: StopRequest, log: Callable[[str], None]
) -> Iterator[list[BackgroundTracker]]:
    """The trackers of a run. The end waits for them, all together at most FINISH_SECONDS.

    Args:
      run: whose config.log_to names them.
      workdir: the folder of the run. It and the folder that it is in give the names at the service.
      stop: whether the run ends by a signal.
      log: receives lines for the user, from other threads.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    names = config_lib.trackers(run.config)
    if not names:
        yield []
        return
    path = workdir.resolve() if is_local(workdir) else workdir
    about = Description(
        _run_id(workdir),
        path.parent.name or PROJECT,
        path.name or PROJECT,
        run.config.to_dict(),
        path if is_local(workdir) else None,
    )
    started = [BackgroundTracker(TRACKERS[name], about, log) for name in names]
    status, waits = "failed", False  # as on a second Ctrl-C
    try:
        yield started
        status, waits = "stopped" if stop.requested else "finished", True
    except Exception:
        waits = True
        raise
    finally:
        for tracker in started:
            tracker.end(status)
        until = time.monotonic() + FINISH_SECONDS
        for tracker in started if waits else ():
            tracker.wait(max(0.0, until - time.monotonic()))


def _run_id(workdir: AnyPath) -> str:
    """The id of the run at all services, from its folder; a new one if it starts at the start."""
    path = workdir / "tracking_id"
    with translate_write_errors(path):
        if run_lib.has_checkpoint(workdir) and path.exists():
            return path.read_text().strip()
        new = secrets.token_hex(8)
        write_atomically(path, f"{new}\n".encode())
        return new
