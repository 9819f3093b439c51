"""Where readings go: metrics.jsonl, TensorBoard, and the terminal."""

import json
import os
import sys
from pathlib import Path

import tensorboardX
import tqdm

from byol_jax.errors import UserError


class Metrics:
    """metrics.jsonl and TensorBoard events of one run; carries on where the run does."""

    def __init__(self, workdir: Path, start_step: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            # What was read after the checkpoint will be read again. Whole or not at all.
            kept = [row for row in read_metrics(self._path) if row["step"] <= start_step]
            rewritten = self._path.with_suffix(".tmp")
            rewritten.write_text("".join(json.dumps(row) + "\n" for row in kept))
            os.replace(rewritten, self._path)
        self._file = self._path.open("a", buffering=1)
        # purge_step hides the same readings from TensorBoard.
        self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1)

    def write(self, step: int, readings: dict[str, float]) -> None:
        """Adds one line; every value becomes a number."""
        readings = {key: float(value) for key, value in readings.items()}
        # JSON has no NaN or infinity.
        row = {k: v if abs(v) < float("inf") else None for k, v in readings.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        for key, value in readings.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        """Writes out what is waiting."""
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, without a last one that a fault cut short.

    Raises:
      UserError: another line is not one of ours.
    """
    rows, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(
                f"line {number} of {path} was not written by this program: move the file away."
            ) from None
        rows.append(row)
    return rows


class Progress:
    """A bar with images/s and time left on a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, start_step: int):
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self._total = total_steps
        self._moving = False

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()
        if not self._moving:
            self._bar.unpause()  # the first step compiled: it says nothing about the pace
            self._moving = True

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
        self._bar.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
