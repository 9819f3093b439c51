"""Commands as modules, for tests that call their `main`."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from absl import flags


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
