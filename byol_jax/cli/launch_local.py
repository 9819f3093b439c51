"""Starts several processes of one pre-training on this machine, as several machines would.

    python -m byol_jax.cli.launch_local N --config=... --workdir=... [flags of experiments.pretrain]

Each process gets the flags, and those by which the processes find each other. The machine's GPUs
are divided among them; on a CPU, each has as many devices as XLA_FLAGS says. Lines of all but the
first process are marked with its number.

Exit codes: 0 all processes are done; 0, or what --stopped_exit_code says, they have stopped and
saved on a signal; 2 the arguments are wrong; else that of the process that failed first (128 and
the signal's number if one killed it).
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from byol_jax.errors import UserError

MODULE = "byol_jax.cli.pretrain"
EXAMPLE = "./run.sh launch-local 2 --config=FILE --workdir=DIR"
OURS = ("coordinator_address", "num_processes", "process_id")  # flags that are set here
PATIENCE = 60.0  # seconds that the others have to leave by themselves
LAST_PATIENCE = 10.0  # and after they were told to
POLL = 0.05  # seconds


def parse(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """The number of processes, and the flags of each.

    Raises:
      UserError: no number, no flags, or a flag that is given here.
    """
    if not arguments or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        found = f"not {arguments[0]!r}" if arguments else "and there is none"
        raise UserError(
            f"The first argument must be the number of processes, {found}: such as {EXAMPLE}."
        )
    count, rest = int(arguments[0]), list(arguments[1:])
    if not rest:
        raise UserError(f"What to train is missing: such as {EXAMPLE}.")
    for flag in rest:
        if flag.startswith("-") and flag.lstrip("-").partition("=")[0] in OURS:
            raise UserError(f"{flag} is set for each process here: leave it out.")
    return count, rest


def gpus(environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that a process of this environment would use, as CUDA knows them."""
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
    """The GPUs of each process; empty lists where there are none.

    Raises:
      UserError: they cannot be divided evenly.
    """
    if len(names) % count:
        raise UserError(
            f"{len(names)} GPUs do not divide among {count} processes: start as many processes as "
            "there are GPUs or a divisor of it, choose GPUs by CUDA_VISIBLE_DEVICES, or set "
            "JAX_PLATFORMS=cpu."
        )
    each = len(names) // count
    return [list(names[i * each : (i + 1) * each]) for i in range(count)]


def launch(
    count: int, flags: Sequence[str], *, module: str = MODULE, patience: float = PATIENCE
) -> int:
    """Runs the processes until all have ended.

    SIGINT, SIGTERM and SIGHUP go on to each process, once for each time that they come; those that
    were ignored stay so, as nohup wants it of SIGHUP.

    Args:
      count: processes, at least 1.
      flags: of each.
      module: that Python runs.
      patience: seconds from the first failure until the others are stopped.

    Returns:
      The exit code, as this file's first lines say.

    Raises:
      UserError: the GPUs cannot be divided.
    """
    divided = shares(gpus(os.environ), count)
    address = f"localhost:{_free_port()}"
    asked: list[int] = []
    # Noted here and passed on below: none is lost while processes are being started.
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    processes: list[subprocess.Popen] = []
    try:
        for i, names in enumerate(divided):
            command = [sys.executable, "-m", module, *flags]
            values = (address, count, i)
            command += [f"--{name}={value}" for name, value in zip(OURS, values, strict=True)]
            processes.append(_start(command, names, captured=i > 0))
        readers = [
            threading.Thread(target=_pass_on, args=(process.stdout, f"[{i}] "), daemon=True)
            for i, process in enumerate(processes[1:], start=1)
        ]
        for reader in readers:
            reader.start()
        stopped = _stopped_exit_code(flags)
        failed = _watch(processes, asked, patience, (0, stopped))
        for reader in readers:
            reader.join(timeout=1)  # what a process has started may hold its output for longer
        if failed is not None:
            return _exit_code(failed)
        return stopped if any(process.returncode for process in processes) else 0
    finally:
        for process in processes:
            if process.poll() is None:  # something raised here
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped_exit_code(flags: Sequence[str]) -> int:
    """What the processes end with after a stop by a signal; the last such flag counts."""
    code = "0"
    for flag, following in zip(flags, [*flags[1:], ""], strict=True):
        name, has_value, value = flag.partition("=")
        if name in ("-stopped_exit_code", "--stopped_exit_code"):
            code = value if has_value else following
    return int(code) if code.isdecimal() else 0  # else no process starts, and each says why


def _free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _start(command: list[str], names: list[str], captured: bool) -> subprocess.Popen:
    """Starts a process with these GPUs, all of them where none is named."""
    environment = dict(os.environ)
    if names:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if captured else None,
        stderr=subprocess.STDOUT if captured else None,
        # Out of the terminal's process group, whose Ctrl-C would reach it a second time.
        process_group=0,
    )


def _pass_on(lines: IO[bytes], mark: str) -> None:
    """Writes what a process says to standard error, each line marked."""
    for line in lines:
        _say(mark.encode() + line.rstrip(b"\n"))


def _say(line: bytes) -> None:
    """Writes a line to standard error; to nobody where the terminal is lost."""
    with contextlib.suppress(OSError):
        os.write(2, line + b"\n")


def _watch(
    processes: list[subprocess.Popen], asked: list[int], patience: float, orderly: Sequence[int]
) -> subprocess.Popen | None:
    """Waits for all processes, passing signals on; after a failure, stops those that stay.

    Orderly are the exit codes that are no failure.

    Returns:
      The process that failed first, if any.
    """
    failed, deadline, measure = None, float("inf"), signal.SIGTERM
    while running := [process for process in processes if process.poll() is None]:
        while asked:
            number = asked.pop(0)
            for process in running:
                process.send_signal(number)
        if failed is None and (failed := _failure(processes, orderly)):
            _say(f"The others have {patience:g} s to leave.".encode())
            deadline = time.monotonic() + patience
        if time.monotonic() > deadline:
            for process in running:
                process.send_signal(measure)
            deadline, measure = time.monotonic() + LAST_PATIENCE, signal.SIGKILL
        time.sleep(POLL)
    return failed or _failure(processes, orderly)


def _failure(processes: list[subprocess.Popen], orderly: Sequence[int]) -> subprocess.Popen | None:
    """A process that ended in another way than well, if any; it is named on standard error."""
    for i, process in enumerate(processes):
        if process.poll() not in (None, *orderly):
            code = process.returncode
            how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            where = "unmarked" if i == 0 else f"marked [{i}]"
            _say(
                f"error: process {i} of {len(processes)} ended with {how}; what it said is above, "
                f"{where}.".encode()
            )
            return process
    return None


def _exit_code(process: subprocess.Popen) -> int:
    """A process's exit code, as shells give it."""
    code = process.returncode
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """Launches what the arguments say; returns the exit code."""
    try:
        return launch(*parse(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
