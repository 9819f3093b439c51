"""Leaving when asked to: by Ctrl-C (SIGINT), a scheduler (SIGTERM) or a lost terminal (SIGHUP)."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

# Some senders signal a process twice, by itself and by its group: that is one request.
SAME_SECONDS = 1.0


class StopRequest:
    """Whether a signal has asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first of these signals into a request; a second one acts as usual."""
    request = StopRequest()
    before = {}
    asked: float | None = None

    def note(signal_number: int, _frame: object) -> None:
        nonlocal asked
        if asked is None:
            asked, request.requested = time.monotonic(), True
            # Not print, which may be in the middle of a line of its own.
            os.write(2, b"\nStopping and saving after the next step; once more to leave at once.\n")
        elif time.monotonic() - asked > SAME_SECONDS:
            signal.signal(signal_number, before[signal_number])
            signal.raise_signal(signal_number)

    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal_number == signal.SIGHUP and signal.getsignal(signal_number) == signal.SIG_IGN:
            continue  # nohup
        before[signal_number] = signal.signal(signal_number, note)
    try:
        yield request
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
