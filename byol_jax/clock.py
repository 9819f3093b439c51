"""How fast a run goes, and how much of the time it waits for input."""

import contextlib
import time
from collections.abc import Iterator

import jax


class Clock:
    """Images per second and the share of time spent waiting for input, between two readings."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._running: dict[str, jax.Array] | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets what was; evaluation and saving do not count as training."""
        self._start = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, metrics: dict[str, jax.Array]) -> None:
        """One more step was started; returns when the one before it is done.

        Steps run behind the host's back. Without a bound the host would run ahead, fill the device
        with batches, and then count as waiting for input what is waiting for the device.
        """
        if self._running is None:
            # The first step compiles, which is neither input nor training.
            jax.block_until_ready(metrics)
            self.restart()
        else:
            jax.block_until_ready(self._running)
            self._steps += 1
        self._running = metrics

    def read(self) -> dict[str, float]:
        """Readings since the restart; the last step's results must have been waited for."""
        self._elapsed = time.perf_counter() - self._start
        if not self._steps:
            return {}
        return {
            "images_per_second": self._steps * self._batch_size / self._elapsed,
            "input_wait_share": self._waited / self._elapsed,
        }

    def seconds_left(self, steps: int) -> float | None:
        """Time for so many more steps at the pace last read; None before there is one."""
        return self._elapsed / self._steps * steps if self._steps else None
