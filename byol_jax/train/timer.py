"""Throughput of a run, the share of time it waits for input, and the time since the last save."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import jax

# A run that waits for input for a larger share of its time is called input-bound.
INPUT_BOUND = 0.1


class Timer:
    """Measures images per second and the share of time spent waiting for input.

    Waiting for a batch while an update runs costs nothing. Only the wait for a batch after the
    running update is done counts. A thread notes when each update is done.
    """

    def __init__(self):
        self._created = time.perf_counter()
        self._update: dict[str, jax.Array] | None = None  # results of the running update
        self._done_at: Future[float] = Future()  # when that is done
        self._updates = queue.SimpleQueue()
        self._run_totals = [0, 0.0, 0.0]  # steps, seconds, and seconds waiting
        threading.Thread(target=_note_times, args=[self._updates], daemon=True).start()
        self.restart()

    def __enter__(self) -> "Timer":
        return self

    def __exit__(self, *_) -> None:
        self._updates.put(None)

    def restart(self) -> None:
        """Begins a new interval, such as after an evaluation, which does not count as training."""
        self._start = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input, from when no update is running."""
        start = time.perf_counter()
        yield
        if self._done_at.done():
            self._waited += time.perf_counter() - max(start, self._done_at.result())

    def start_update(self, results: dict[str, jax.Array]) -> bool:
        """Counts an update that was dispatched; returns when the update before is done.

        Without that bound the loop would run ahead of the device, fill it with batches, and count
        waiting for the device as waiting for input.

        Args:
          results: arrays that are ready when the update is done.

        Returns:
          Whether it was the first update, which is then done.
        """
        is_first = self._update is None
        if is_first:
            # It includes compilation, which is neither input nor training.
            jax.block_until_ready(results)
            self.restart()
        else:
            jax.block_until_ready(self._update)
            self._steps += 1
        self._update, self._done_at = results, Future()
        self._updates.put((results, self._done_at))
        return is_first

    def since_start(self) -> float:
        """Seconds since this timer was created."""
        return time.perf_counter() - self._created

    def rates(self, batch_size: int) -> dict[str, float]:
        """Rates since the restart; call it when the last update is done. {} without a step."""
        self._elapsed = time.perf_counter() - self._start
        if not self._steps:
            return {}
        interval = (self._steps, self._elapsed, self._waited)
        self._run_totals = [sum(pair) for pair in zip(self._run_totals, interval, strict=True)]
        return _rates(batch_size, *interval)

    def run_rates(self, batch_size: int) -> dict[str, float]:
        """Rates over all intervals that `rates` has returned; {} without a step."""
        return _rates(batch_size, *self._run_totals) if self._run_totals[0] else {}

    def seconds_left(self, steps: int) -> float | None:
        """Seconds that further steps will take at the last rates; None before there are any."""
        return self._elapsed / self._steps * steps if self._steps else None


def _note_times(updates: queue.SimpleQueue) -> None:
    """Sets the time at which each update is done, until it receives None."""
    while (update := updates.get()) is not None:
        results, done_at = update
        with contextlib.suppress(Exception):  # the loop raises it too
            jax.block_until_ready(results)
        done_at.set_result(time.perf_counter())


def _rates(batch_size: int, steps: int, elapsed: float, waited: float) -> dict[str, float]:
    return {
        "images_per_second": steps * batch_size / elapsed,
        "input_wait_share": waited / elapsed,
    }


def duration(seconds: float) -> str:
    """A time as text, such as "12 minutes"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


class SaveTimer:
    """Is due when some minutes have passed since the last checkpoint; 0 minutes: never."""

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint was saved."""
        self._start = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return 0 < self._seconds <= time.monotonic() - self._start
