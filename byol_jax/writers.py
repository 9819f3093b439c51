"""Where readings go: metrics.jsonl, TensorBoard, and the terminal."""

import json
import sys
from pathlib import Path

import tensorboardX
import tqdm


class Metrics:
    """metrics.jsonl and TensorBoard events of one run; carries on where the run does."""

    def __init__(self, workdir: Path, start_step: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            # What was read after the checkpoint will be read again.
            kept = [row for row in read_metrics(self._path) if row["step"] <= start_step]
            self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
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
    """The lines of a metrics.jsonl, without a last one that a fault cut short."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """A bar with images/s and time left on a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, start_step: int, quiet: bool):
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._quiet = quiet
        self._total = total_steps

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def report(self, step: int, readings: dict[str, float], seconds_left: float | None) -> None:
        """Shows a reading: on the bar, or as a line."""
        shown = {
            key: f"{float(readings[key]):.4g}"
            for key in ("loss", "images_per_second", "knn_test_top1", "probe_train_top1")
            if key in readings
        }
        if not self._bar.disable:
            self._bar.set_postfix(shown)
        elif not self._quiet:
            words = "  ".join(f"{key} {value}" for key, value in shown.items())
            if seconds_left is not None:
                words += f"  {tqdm.tqdm.format_interval(seconds_left)} left"
            self.say(f"step {step}/{self._total}  {words}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if not self._quiet:
            self._bar.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
