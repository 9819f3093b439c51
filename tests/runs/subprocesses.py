"""Runs a program as several processes on this machine, connected over loopback by gloo."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from compilation import XLA_FLAGS

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def start(arguments, count=2, devices=2):
    """Processes `python ARGUMENTS --coordinator_address=... --num_processes=... --process_id=I`.

    Each has `devices` virtual devices (None: as the program decides), and one pipe for stdout and
    stderr.
    """
    address = f"localhost:{free_port()}"
    count_flag = f" --xla_force_host_platform_device_count={devices}" if devices else ""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": XLA_FLAGS + count_flag,
        "PYTHONUNBUFFERED": "1",
    }
    return [
        subprocess.Popen(
            [
                *(sys.executable, *map(str, arguments)),
                *(f"--coordinator_address={address}", f"--num_processes={count}"),
                f"--process_id={i}",
            ],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'runs'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def finish(processes, seconds=120):
    """Waits for all, kills the rest after `seconds`; returns (exit code, output) of each."""
    deadline, ends = time.monotonic() + seconds, []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 1))
            ends.append((process.returncode, output))
    finally:
        for process in processes:
            process.kill()
    return ends
