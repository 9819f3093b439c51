"""Runs one pre-training in several processes on this machine, as on several machines.

byol-jax launch-local N --config=NAME --workdir=DIR [other flags of pretrain]

Each process gets the flags, and those by which the processes find each other. The machine's GPUs
are divided among them; on a CPU, each has one device, or as many as --cpu_devices or XLA_FLAGS
sets. The output of all processes but the first is prefixed with their number.

Exit codes: 0 all processes are done; 0, or --stopped_exit_code, they stopped and saved on a signal;
2 the arguments are wrong; otherwise that of the process that failed first (128 plus the signal's
number if a signal killed it).
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from byol_jax.errors import ConfigError

PROGRAM = ("-m", "byol_jax.cli", "pretrain")  # of Python
EXAMPLE = "byol-jax launch-local 2 --config=NAME --workdir=DIR"
OURS = ("coordinator_address", "num_processes", "process_id")  # flags that are set here
GRACE = 60.0  # seconds from a failure until the other processes get SIGTERM
KILL_GRACE = 10.0  # seconds from SIGTERM to SIGKILL
POLL = 0.05  # seconds


def parse(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """The number of processes, and the flags of each.

    Raises:
      ConfigError: no number, no flags, or a flag that is set here.
    """
    if not arguments or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        found = f"not {arguments[0]!r}" if arguments else "and is missing"
        raise ConfigError(f"The first argument is the number of processes, {found}: {EXAMPLE}.")
    count, rest = int(arguments[0]), list(arguments[1:])
    if not rest:
        raise ConfigError(f"The flags of pretrain are missing: {EXAMPLE}.")
    for flag in rest:
        if flag.startswith("-") and flag.lstrip("-").partition("=")[0] in OURS:
            raise ConfigError(f"{flag} is set for each process here: leave it out.")
    return count, rest


def gpus(environment: Mapping[str, str]) -> list[str]:
    """CUDA's names of the GPUs that a process with this environment would use."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        names = environment["CUDA_VISIBLE_DEVICES"].split(",")
        return [name.strip() for name in names if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i in range(len(lines))] if listed.returncode == 0 else []


def shares(names: Sequence[str], count: int) -> list[list[str]]:
    """Divides GPUs evenly: those of each process, empty lists if there are none.

    Raises:
      ConfigError: the number of GPUs is not a multiple of the number of processes.
    """
    if len(names) % count:
        raise ConfigError(
            f"{len(names)} GPUs do not divide among {count} processes: choose another number of "
            "processes, choose GPUs by CUDA_VISIBLE_DEVICES, or set JAX_PLATFORMS=cpu."
        )
    each = len(names) // count
    return [list(names[i * each : (i + 1) * each]) for i in range(count)]


def launch(
    count: int, flags: Sequence[str], program: Sequence[str] = PROGRAM, grace: float = GRACE
) -> int:
    """Runs the processes until all have ended.

    SIGINT, SIGTERM and SIGHUP are passed on to each process, each time one arrives; signals that
    were ignored at the start stay ignored, as nohup expects of SIGHUP.

    Args:
      count: number of processes, at least 1.
      flags: for each of them.
      program: what Python runs.
      grace: seconds from the first failure until the others get SIGTERM.

    Returns:
      The exit code; the module's docstring lists them.

    Raises:
      ConfigError: the GPUs cannot be divided.
    """
    from byol_jax.backend import cpu_devices  # imports JAX

    divided = shares(gpus(os.environ), count)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    received: list[int] = []
    # Recorded here and passed on in _wait: none is lost while processes are being started.
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    processes: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    try:
        for i, names in enumerate(divided):
            own = zip(OURS, (address, count, i), strict=True)
            command = [sys.executable, *program, *flags]
            command += [f"--{name}={value}" for name, value in own]
            environment = dict(os.environ)
            if names:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(names)
            else:
                # The processes share the cores, all of which oneDNN would use in each of them.
                share = max(1, cpu_devices.cores() // count)
                environment.setdefault("OMP_NUM_THREADS", str(share))
            processes.append(_start(command, environment, captured=i > 0))
            if i > 0:
                arguments = (processes[i].stdout, f"[{i}] ".encode())
                readers.append(threading.Thread(target=_copy_lines, args=arguments, daemon=True))
                readers[-1].start()
        stopped = _stopped_exit_code(flags)
        failed = _wait(processes, received, grace, (0, stopped))
        for reader in readers:
            reader.join(timeout=1)  # children of a process may hold its output open for longer
        if failed is not None:
            code = failed.returncode
            return code if code >= 0 else 128 - code  # as in shells
        return stopped if any(process.returncode for process in processes) else 0
    finally:
        for process in processes:
            if process.poll() is None:  # an exception was raised here
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped_exit_code(flags: Sequence[str]) -> int:
    """The value of the last --stopped_exit_code; 0 without one."""
    found = re.findall(r"(?m)^--?stopped_exit_code[=\n](\d+)$", "\n".join(flags))
    return int(found[-1]) if found else 0


def _start(command: list[str], environment: dict[str, str], captured: bool) -> subprocess.Popen:
    """Starts a process, whose output is captured or goes where ours goes."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if captured else None,
        stderr=subprocess.STDOUT if captured else None,
        # Outside the terminal's process group, from which Ctrl-C would reach it a second time.
        process_group=0,
    )


def _copy_lines(lines: IO[bytes], prefix: bytes) -> None:
    """Copies the output of a process to standard error, each line with a prefix."""
    for line in lines:
        _log(prefix + line.rstrip(b"\n"))


def _log(line: bytes) -> None:
    """Writes a line to standard error; does nothing if the terminal is gone."""
    with contextlib.suppress(OSError):
        os.write(2, line + b"\n")


def _wait(
    processes: list[subprocess.Popen], received: list[int], grace: float, success: Sequence[int]
) -> subprocess.Popen | None:
    """Waits for all and passes on `received` signals; returns the first that failed, if any."""
    failed, deadline, next_signal = None, float("inf"), signal.SIGTERM
    while running := [process for process in processes if process.poll() is None]:
        while received:
            number = received.pop(0)
            for process in running:
                process.send_signal(number)
        if failed is None and (failed := _find_failure(processes, success)):
            _log(f"The other processes have {grace:g} s to exit.".encode())
            deadline = time.monotonic() + grace
        if time.monotonic() > deadline:
            for process in running:
                process.send_signal(next_signal)
            deadline, next_signal = time.monotonic() + KILL_GRACE, signal.SIGKILL
        time.sleep(POLL)
    return failed or _find_failure(processes, success)


def _find_failure(
    processes: list[subprocess.Popen], success: Sequence[int]
) -> subprocess.Popen | None:
    """The first process that ended with a failure, which is logged; None if there is none."""
    for i, process in enumerate(processes):
        if process.poll() not in (None, *success):
            code = process.returncode
            how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            where = "without a prefix" if i == 0 else f"prefixed with [{i}]"
            text = f"process {i} of {len(processes)} ended with {how}; its output is above, {where}"
            _log(f"error: {text}.".encode())
            return process
    return None


def main(arguments: Sequence[str]) -> int:
    """Runs the launcher; returns the exit code."""
    if {"--help", "-h"} & set(arguments):
        print(__doc__)
        return 0
    try:
        return launch(*parse(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
