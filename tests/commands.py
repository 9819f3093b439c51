"""Commands as modules, for tests that call their `main`; and what stops them."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from absl import flags

from byol_jax.train.signals import StopRequest


@contextlib.contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """The module of a command; its flags, which other commands share, are removed afterwards."""
    before = set(flags.FLAGS)
    module = importlib.import_module(f"byol_jax.cli.{name}")
    try:
        yield module
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        del sys.modules[module.__name__]


class Stopping(StopRequest):
    """Requests a stop, as a signal does, when it was asked more often than this."""

    def __init__(self, times: int):
        self._left = times

    @property
    def requested(self) -> bool:
        """Whether it was asked so often; asking counts."""
        self._left -= 1
        return self._left < 0
