"""Metrics at services: what they receive, at which starts, and that they cannot hurt a run."""

import json
import math
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny import tiny_config

from byol_jax.errors import UserError
from byol_jax.runs import config as config_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import loop, trackers, wandb_files
from byol_jax.train.metrics import MetricsWriter


class Service(trackers.Tracker):
    """A service in memory, which may fail or hang at one of its methods."""

    label = place = "Service"
    fails_at, hangs_at = "", ""

    def __init__(self, about):
        self.received[:] = self.received or []
        self.last_step = max((step for step, _ in self.received), default=0)
        self.about.append(about)
        self._meet("open")

    def write(self, rows):
        self._meet("write")
        self.received.extend(rows)

    def close(self, status):
        self._meet("close")
        self.statuses.append(status)

    def _meet(self, method):
        if method == self.fails_at:
            raise RuntimeError("HTTP 401:\nwrong key")
        if method == self.hangs_at:
            self.released.wait()


@pytest.fixture
def service(monkeypatch):
    """The class of a service that nobody used; config.log_to=wandb means it."""
    kind = type("NewService", (Service,), {"received": [], "about": [], "statuses": []})
    kind.released = threading.Event()
    monkeypatch.setitem(trackers.TRACKERS, "wandb", kind)
    monkeypatch.setattr(trackers, "check", lambda config: None)
    yield kind
    kind.released.set()


def make_run(log_to="wandb"):
    config = tiny_config()
    config.log_to = log_to
    return run_lib.Run(resolve(config)[0], {}, 1)


def write(workdir, start, steps, log_to="wandb", requested=False, error=None):
    """What one start of a run does; returns the lines that it logs."""
    lines, stop = [], SimpleNamespace(requested=requested)
    with trackers.open_trackers(make_run(log_to), workdir, stop, lines.append) as opened:
        writer = MetricsWriter(workdir, start, opened)
        for step in steps:
            writer.write(step, {"epoch": step / 4, "loss": math.nan if step == 2 else 1 / step})
        writer.close()
        if error:
            raise error
    return lines


def save(workdir, step):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)


def rows(workdir):
    """The rows of metrics.jsonl, by step; null as NaN."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        row.pop("step"): {k: math.nan if x is None else x for k, x in row.items()} for row in found
    }


def test_a_service_gets_each_step_once(service, tmp_path):
    workdir = tmp_path / "group" / "mine"
    workdir.mkdir(parents=True)
    assert write(workdir, 0, [1, 2, 3]) == ["Metrics also go to Service: Service."]
    save(workdir, 2)
    write(workdir, 2, [3, 4])  # step 3 again, as after a kill
    assert [step for step, _ in service.received] == [1, 2, 3, 4]
    np.testing.assert_equal(dict(service.received), rows(workdir))
    first, second = service.about
    assert first.id == second.id and (first.project, first.name) == ("group", "mine")
    assert first.config["log_to"] == "wandb" and service.statuses == ["finished", "finished"]


def test_a_service_gets_what_it_lacks(service, tmp_path):
    """Because it came later to the run, or was out of order."""
    write(tmp_path, 0, [1, 2, 3], log_to="")
    assert not (tmp_path / "tracking_id").exists()
    save(tmp_path, 2)
    write(tmp_path, 2, [3])
    assert [step for step, _ in service.received] == [1, 2, 3]
    np.testing.assert_equal(dict(service.received), rows(tmp_path))


def test_a_run_that_starts_anew_in_its_folder_has_a_new_id(service, tmp_path):
    write(tmp_path, 0, [1])
    write(tmp_path, 0, [1])
    first, second = service.about
    assert first.id != second.id


@pytest.mark.parametrize("method", ["open", "write", "close"])
def test_an_error_is_one_line(service, tmp_path, method):
    service.fails_at = method
    *_, line = write(tmp_path, 0, [1, 2, 3])
    assert line == (
        "warning: Service gets no more metrics (RuntimeError: HTTP 401: wrong key). metrics.jsonl "
        "has them, and the next start sends what is missing."
    )
    assert list(rows(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize("method", ["open", "write", "close"])
def test_nothing_waits_for_a_service(service, tmp_path, method, monkeypatch):
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.2)
    service.hangs_at, start = method, time.monotonic()
    *_, line = write(tmp_path, 0, range(1, 100))
    assert "Service was not done 0.2 s after the end" in line
    assert time.monotonic() - start < 5
    assert len(rows(tmp_path)) == 99


def test_a_service_is_told_how_a_run_ends(service, tmp_path, monkeypatch):
    write(tmp_path, 0, [1], requested=True)
    with pytest.raises(UserError):
        write(tmp_path, 0, [1], error=UserError("collapsed"))
    assert service.statuses == ["stopped", "failed"]
    service.hangs_at, start = "close", time.monotonic()
    with pytest.raises(KeyboardInterrupt):  # a second Ctrl-C, which does not wait
        write(tmp_path, 0, [1], error=KeyboardInterrupt())
    assert time.monotonic() - start < 5


def test_wrong_and_missing_services_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="log_to='wandb,tensorboard': tensorboard is not one of"):
        make_run("wandb,tensorboard")
    monkeypatch.setitem(sys.modules, "wandb.sdk", None)
    config = tiny_config()
    config.log_to = "wandb"
    with pytest.raises(UserError, match=r"log_to=wandb need one more .*'byol_jax\[wandb\]'"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_is_the_same_with_a_broken_service(service, tmp_path, capsys, monkeypatch):
    config = tiny_config()
    config.steps, config.evaluation.every_steps, config.data.test_split = 4, 0, ""
    config.log_to, service.fails_at = "wandb", "write"
    with monkeypatch.context() as patch:  # by equal settings, which are compiled once
        patch.setattr(config_lib, "trackers", lambda config: [])
        assert loop.train(config, tmp_path / "without")
    assert not service.about
    assert loop.train(config, tmp_path / "broken")
    assert capsys.readouterr().out.count("warning: Service gets no more metrics") == 1
    states = [run_lib.restore(tmp_path / name).state for name in ("without", "broken")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert list(rows(tmp_path / "broken")) == list(rows(tmp_path / "without")) == [2, 3, 4]


def test_offline_files_of_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs requirements-interop.txt")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    write(tmp_path, 0, range(1, 501))  # more than a block of the file
    save(tmp_path, 450)
    (line,) = write(tmp_path, 450, range(451, 503), requested=True)
    wandb.teardown()
    assert line == f"Metrics also go to Weights & Biases: {tmp_path / 'wandb'}."
    found, ids, config, summary = [], set(), {}, {}
    for path in sorted(
        tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime
    ):
        for record in wandb_files.records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    ids.add(record.run.run_id)
                    config |= {item.key: item.value_json for item in record.run.config.update}
                case "history":
                    items = record.history.item
                    row = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
                    found.append((record.history.step.num, row))
                case "summary":
                    items = record.summary.update
                    summary |= {i.key or i.nested_key[0]: i.value_json for i in items}
    assert ids == {(tmp_path / "tracking_id").read_text().strip()}
    assert json.loads(config["batch_size"]) == 16 and json.loads(summary["status"]) == "stopped"
    want = rows(tmp_path)
    assert [step for step, _ in found] == list(want) == list(range(1, 503))  # each once
    for step, row in found:
        values = {key: float(row[key]) for key in want[step]}
        np.testing.assert_equal(values, want[step])
    path.write_bytes(path.read_bytes()[:-1])
    assert wandb_files.last_step(tmp_path / "wandb", ids.pop()) == 502
    first = min(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    path.unlink()
    first.write_bytes(first.read_bytes()[:20_000])  # as after a kill
    assert 10 < wandb_files.last_step(tmp_path / "wandb", first.stem.removeprefix("run-")) < 400


@pytest.mark.filterwarnings("ignore")  # of MLflow about how it uses SQLAlchemy
def test_a_database_of_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs requirements-interop.txt")
    pytest.importorskip("alembic", reason="needs requirements-interop.txt")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "trials")
    write(tmp_path, 0, [1, 2, 3], log_to="mlflow")
    save(tmp_path, 2)
    write(tmp_path, 2, [3, 4], log_to="mlflow", requested=True)
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("trials").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED" and run.info.run_name == tmp_path.name
    assert run.data.params["batch_size"] == "16" and run.data.params["encoder.name"] == "convnet"
    want = rows(tmp_path)
    for key in ("loss", "epoch"):
        history = client.get_metric_history(run.info.run_id, key)
        assert len(history) == 4  # each step once
        found = {metric.step: metric.value for metric in history}
        np.testing.assert_equal(found, {step: row[key] for step, row in want.items()})
