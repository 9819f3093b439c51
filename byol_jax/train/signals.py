"""Stopping on request: Ctrl-C (SIGINT), a scheduler's SIGTERM, or a lost terminal (SIGHUP)."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

# Some senders signal a process twice, directly and by its group: that counts as one request.
SAME_REQUEST_SECONDS = 1.0


class StopRequest:
    """Whether a signal has requested a stop."""

    requested = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first of these signals into a request; a second one acts as usual.

    Python handles signals in its main thread only. In other threads nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {}
    requested_at: float | None = None

    def handle(signal_number: int, _frame: object) -> None:
        nonlocal requested_at
        if requested_at is None:
            requested_at, request.requested = time.monotonic(), True
            # Not by print, which the signal may have interrupted.
            os.write(2, b"\nStopping and saving after the next step; repeat to stop at once.\n")
        elif time.monotonic() - requested_at > SAME_REQUEST_SECONDS:
            signal.signal(signal_number, previous[signal_number])
            signal.raise_signal(signal_number)

    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal_number == signal.SIGHUP and signal.getsignal(signal_number) == signal.SIG_IGN:
            continue  # nohup
        previous[signal_number] = signal.signal(signal_number, handle)
    try:
        yield request
    finally:
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)
