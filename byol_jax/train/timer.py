"""How fast a run goes, and how much of the time it waits for input."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import jax

# Waiting for more of the time than this, a run would be faster by as much with faster input.
INPUT_BOUND = 0.1


class Timer:
    """Images per second and the share of time that input held up, between two readings.

    An update is computed while the next batch is awaited, and that is time well spent: held up is
    what is waited for a batch after the update that was running is done.
    """

    def __init__(self):
        self._began = time.perf_counter()
        self._running: dict[str, jax.Array] | None = None
        self._done: Future[float] = Future()  # when the running update was done
        self._totals = [0, 0.0, 0.0]  # of what was read: steps, time, time of it waiting
        self.restart()

    def restart(self) -> None:
        """Forgets what was; evaluation and saving do not count as training."""
        self._start = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside, as far as no update is running, as waiting for input."""
        start = time.perf_counter()
        yield
        if self._done.done():
            self._waited += time.perf_counter() - max(start, self._done.result())

    def count(self, metrics: dict[str, jax.Array]) -> bool:
        """One more step was started; returns when the one before it is done.

        Steps run behind the host's back. Without a bound the host would run ahead, fill the device
        with batches, and then count as waiting for input what is waiting for the device.

        Returns:
          Whether it was the first, which is then done.
        """
        is_first = self._running is None
        if is_first:
            # The first step compiles, which is neither input nor training.
            jax.block_until_ready(metrics)
            self.restart()
        else:
            jax.block_until_ready(self._running)
            self._steps += 1
        self._running = metrics
        self._watch(metrics)
        return is_first

    def _watch(self, metrics: dict[str, jax.Array]) -> None:
        """Notes when an update is done, behind the loop's back."""
        self._done = done = Future()

        def watch() -> None:
            with contextlib.suppress(Exception):  # raised where the loop waits, too
                jax.block_until_ready(metrics)
            done.set_result(time.perf_counter())

        threading.Thread(target=watch, daemon=True).start()

    def since_start(self) -> float:
        """Seconds since there is this clock."""
        return time.perf_counter() - self._began

    def read(self, batch_size: int) -> dict[str, float]:
        """Readings since the restart; the last step's results must have been waited for."""
        self._elapsed = time.perf_counter() - self._start
        if not self._steps:
            return {}
        of_now = (self._steps, self._elapsed, self._waited)
        self._totals = [sum(pair) for pair in zip(self._totals, of_now, strict=True)]
        return _rates(batch_size, *of_now)

    def of_the_run(self, batch_size: int) -> dict[str, float]:
        """The same of all that was read since the start of the program; {} before there is any."""
        return _rates(batch_size, *self._totals) if self._totals[0] else {}

    def seconds_left(self, steps: int) -> float | None:
        """Time for so many more steps at the pace last read; None before there is one."""
        return self._elapsed / self._steps * steps if self._steps else None


def _rates(batch_size: int, steps: int, elapsed: float, waited: float) -> dict[str, float]:
    return {
        "images_per_second": steps * batch_size / elapsed,
        "input_wait_share": waited / elapsed,
    }
