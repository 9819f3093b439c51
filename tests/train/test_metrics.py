"""Files of JSON lines that resume with their run, and their errors."""

import errno
import json
import os
import struct

import pytest
from tensorboard.compat.proto import event_pb2

from byol_jax.errors import UserError
from byol_jax.train import metrics


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step, "broken": float("nan")})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a fault
    writer = metrics.MetricsWriter(tmp_path, 2)
    writer.write(3, {"loss": 30})
    writer.close()
    assert rows(tmp_path) == [
        {"step": 1, "loss": 1.0, "broken": None},
        {"step": 2, "loss": 2.0, "broken": None},
        {"step": 3, "loss": 30.0},
    ]


def events(path):
    """The events of a file of TFRecords: length, checksum, data, checksum."""
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_tensorboard_gets_the_metrics(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 4)
    writer.write(5, {"loss": 1.5, "accuracy": 0.25})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    version, start, row = events(path)  # while the run goes on
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, event_pb2.SessionLog.START)
    values = {value.tag: value.simple_value for value in row.summary.value}
    assert (row.step, values) == (5, {"loss": 1.5, "accuracy": 0.25})
    writer.write(6, {"loss": 1.0})
    writer.close()
    assert len(events(path)) == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_without_room_for_tensorboard_ends_the_run(tmp_path, monkeypatch):
    """A thread that writes them would end, and the next metrics would wait for it forever."""
    writer = metrics.MetricsWriter(tmp_path, 0)
    with open("/dev/full", "wb", 0) as full, monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, mode: full)
        with pytest.raises(UserError, match="No space left on device"):
            writer.write(1, {"loss": 1.0})


def test_a_full_disk_is_a_one_line_error(tmp_path, monkeypatch):
    writer = metrics.MetricsWriter(tmp_path, 0)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "fsync", full)
        with pytest.raises(UserError, match=r"metrics.jsonl cannot be written \(No space left"):
            writer.write(1, {"loss": 1.0})
    writer.close()


@pytest.mark.parametrize("line", [b"\xff{}", b"[" * 100_000, b"3"])
def test_a_damaged_metrics_file_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"line 1 of .*metrics.jsonl was not written by this"):
        metrics.MetricsWriter(tmp_path, 2)
