"""The program under test: started as a user starts it, watched line by line, and signalled."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds until a program that should have moved is said to hang


class Program:
    """A running program: its lines as they come, and how it ended. Killed on leaving `with`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        """Starts the command in the root of the repository."""
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._silent = False  # it has ended, and all it said was read
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
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._silent = True
            self._news.notify_all()

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

    def said(self, text: str) -> str:
        """The last line with this text in it, or ''."""
        return next((line for line in reversed(self.lines) if text in line), "")

    def step(self) -> int:
        """The last step whose reading was shown; 0 before the first."""
        line = next((x for x in reversed(self.lines) if x.startswith("step ")), "step 0/")
        return int(line.split()[1].split("/")[0])

    def where(self) -> str:
        """How far it came, in words."""
        return f"step {self.step()} shown last" if self.step() else "no step shown"

    def end(self) -> str:
        """Its exit code and last words, for a report."""
        last = self.said("error: ") or " / ".join(self.lines[-3:])
        return f"exit code {self._popen.returncode}, {last}"

    def error(self) -> str:
        """The sentence in which it says why it ends; '' where it says none."""
        return self.said("error: ").removeprefix("error: ")

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Waits for a line that makes it true; False where the program ends without.

        Raises:
          TimeoutError: neither happens for minutes.
        """
        with self._news:
            if not self._news.wait_for(lambda: condition() or self._silent, PATIENCE):
                raise TimeoutError(f"nothing came after {self.lines[-1:]}")
        return condition()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self.running:
            self._popen.send_signal(number)

    def finish(self) -> int:
        """Waits for its end: the exit code, negative for a signal that ended it.

        Raises:
          TimeoutError: it hangs; it has then been killed.
        """
        try:
            code = self._popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            raise TimeoutError(f"did not end after {self.lines[-1:]}") from None
        self._reader.join()
        return code


class Run(NamedTuple):
    """A toy run: its folder, and what its command has besides."""

    workdir: Path
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None

    def start(self, *more: str) -> Program:
        """Starts its command, or starts it again."""
        command = [sys.executable, "-m", "byol_jax.cli.pretrain", "--config=tests/faults/toy.py"]
        command += [f"--workdir={self.workdir}", *self.flags, *more]
        return Program(command, self.environment)

    def complete(self) -> Program:
        """Runs its command to the end."""
        with self.start() as program:
            program.finish()
        return program
