"""Keeps quiet what Orbax and TensorStore print about an error besides raising it.

A damaged file or a full disk is told in one sentence (checkpoint.py). Orbax logs the exception
that it is about to raise, with its traceback. At the first error it also closes its event loop,
while other reads or writes go on: those then print that the loop is closed, or that nobody asked
for their errors.
"""

import logging
import sys
from typing import Any


def silence() -> None:
    """Filters exactly that; all else is logged and printed as before. To be called once."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
