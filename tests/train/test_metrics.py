"""Files of JSON lines that resume with their run, and their errors."""

import errno
import json
import os

import pytest

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
