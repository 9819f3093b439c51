"""Leaving when asked to: SIGINT (Ctrl-C) and SIGTERM (schedulers, preemption)."""

import contextlib
import os
import signal
from collections.abc import Iterator


class StopRequest:
    """Whether a signal has asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request; a second one acts as usual."""
    request = StopRequest()
    before = {}

    def note(signal_number: int, _frame: object) -> None:
        request.requested = True
        # Not print, which may be in the middle of a line of its own.
        os.write(2, b"\nStopping and saving after the next step; once more to leave at once.\n")
        signal.signal(signal_number, before[signal_number])

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        before[signal_number] = signal.signal(signal_number, note)
    try:
        yield request
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
