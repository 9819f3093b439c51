"""Where readings go: metrics.jsonl, TensorBoard, and the terminal."""

import contextlib
import json
import os
import sys

import tqdm

from byol_jax.errors import UserError
from byol_jax.runs.paths import AnyPath, is_local, translate_write_errors, write_atomically


class Metrics:
    """metrics.jsonl and TensorBoard events of one run; carries on where the run does.

    In a folder that is not local (gs://) there are no events, and the lines come at each `flush`:
    a file there cannot be added to.
    """

    def __init__(self, workdir: AnyPath, start_step: int):
        self._path = workdir / "metrics.jsonl"
        kept = read_metrics(self._path) if self._path.exists() else []
        # What was read after the checkpoint will be read again.
        self._lines = [json.dumps(row) + "\n" for row in kept if row["step"] <= start_step]
        self._rewrite()
        self._file = self._events = None
        self._workdir, self._start_step = workdir, start_step
        if is_local(workdir):
            self._file = self._path.open("a")

    def write(self, step: int, readings: dict[str, float]) -> None:
        """Adds one line; every value becomes a number."""
        readings = {key: float(value) for key, value in readings.items()}
        # JSON has no NaN or infinity.
        row = {k: v if abs(v) < float("inf") else None for k, v in readings.items()}
        line = json.dumps({"step": step, **row}) + "\n"
        if self._file is None:
            self._lines.append(line)
            return
        with translate_write_errors(self._path):
            self._file.write(line)
            self._file.flush()
        if self._events is None:
            # Not sooner: where PyTorch is installed this imports it, which takes seconds, and a
            # start should get to its first step.
            import tensorboardX

            # purge_step hides the same readings from TensorBoard.
            purge_step = self._start_step + 1
            self._events = tensorboardX.SummaryWriter(str(self._workdir), purge_step=purge_step)
        for key, value in readings.items():
            self._events.add_scalar(key, value, step)

    def flush(self) -> None:
        """Puts what was written where it outlives this machine; before a checkpoint is saved."""
        if self._file is None:
            self._rewrite()
        else:
            with translate_write_errors(self._path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes out what is waiting."""
        if self._file is None:
            self._rewrite()
            return
        with contextlib.suppress(OSError):  # said when it was written
            self._file.close()
        if self._events is not None:
            self._events.close()

    def _rewrite(self) -> None:
        write_atomically(self._path, "".join(self._lines).encode())


def read_metrics(path: AnyPath) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, without a last one that a fault cut short.

    Raises:
      UserError: another line is not one of ours.
    """
    try:
        rows, lines = [], path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): move it away.") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines):
                break
            raise UserError(
                f"line {number} of {path} was not written by this program: move the file away."
            ) from None
        rows.append(row)
    return rows


class Progress:
    """A bar with images/s and time left on a terminal, plain lines elsewhere; or nothing."""

    def __init__(self, total_steps: int, quiet: bool = False):
        self._quiet = quiet
        self._bar = tqdm.tqdm(
            total=total_steps,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._total = total_steps
        self._moving = False

    def advance(self, step: int) -> None:
        """So many steps are done."""
        if not self._moving:
            # The first step compiled: it says nothing about the pace.
            self._bar.n = self._bar.initial = step
            self._bar.unpause()
            self._moving = True
        self._bar.update(step - self._bar.n)

    def report(self, step: int, readings: dict[str, float], seconds_left: float | None) -> None:
        """Shows a reading: on the bar, or as a line."""
        shown = {
            key: f"{float(readings[key]):.4g}"
            for key in ("loss", "images_per_second", "knn_test_top1", "probe_train_top1")
            if key in readings
        }
        if not self._bar.disable:
            self._bar.set_postfix(shown)
        else:
            words = "  ".join(f"{key} {value}" for key, value in shown.items())
            if seconds_left is not None:
                words += f"  {tqdm.tqdm.format_interval(seconds_left)} left"
            self.say(f"step {step}/{self._total}  {words}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._quiet:
            return
        self._bar.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
