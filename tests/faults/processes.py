"""The program under test: started as a user starts it, watched line by line, and signalled."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300.0  # seconds without the expected output after which a program counts as hanging


class Program:
    """A running program: its lines as they come, and how it ended. Killed at the end of `with`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        """Starts the command in the root of the repository."""
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._closed = False  # it has ended, and all of its output was read
        self.started = time.monotonic()
        self._popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._popen.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_) -> None:
        self.send(signal.SIGKILL)
        self.finish()
        self._popen.stdout.close()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    def line_with(self, pattern: str) -> str:
        """The last line that matches a regular expression somewhere, or ''."""
        return next((line for line in reversed(self.lines) if re.search(pattern, line)), "")

    def step(self) -> int:
        """The last step whose metrics were printed; 0 before the first."""
        line = self.line_with(r"^step \d+/") or "step 0/"
        return int(line.split()[1].split("/")[0])

    def resumed_line(self) -> str:
        """The line that names the checkpoint from which it resumed, or ''."""
        return self.line_with(r"from the checkpoint of step \d+\.$")

    def end(self) -> str:
        """Its exit code and last lines, for a report."""
        last = self.line_with("error: ") or " / ".join(self.lines[-3:])
        return f"exit code {self._popen.returncode}, {last}"

    def error(self) -> str:
        """The error line that it printed, or ''."""
        return self.line_with("error: ").removeprefix("error: ")

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Waits for a line that makes it true; returns False if the program ends without one.

        Raises:
          TimeoutError: neither happens for minutes.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition() or self._closed, TIMEOUT):
                raise TimeoutError(f"nothing came after {self.lines[-1:]}")
        return condition()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self.running:
            self._popen.send_signal(number)

    def finish(self) -> int:
        """Waits for its end; returns the exit code, negative for a signal that ended it.

        Raises:
          TimeoutError: it hangs; it has then been killed.
        """
        try:
            code = self._popen.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            raise TimeoutError(f"did not end after {self.lines[-1:]}") from None
        self._reader.join()
        return code


class Run(NamedTuple):
    """A toy run: its folder, additional flags and environment of its command, and its config."""

    workdir: Path
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    config: str = "tests/faults/toy.py"

    def start(self, *more: str) -> Program:
        """Starts its command, or starts it again."""
        command = [sys.executable, "-m", "byol_jax.cli", "pretrain", f"--config={self.config}"]
        command.append("--noreport")
        command += [f"--workdir={self.workdir}", *self.flags, *more]
        return Program(command, self.environment)

    def complete(self) -> Program:
        """Runs its command to the end."""
        with self.start() as program:
            program.finish()
        return program
