"""Packages that only some sources need."""

import importlib
from types import ModuleType

from byol_jax.errors import UserError


def package(name: str, what: str, extra: str) -> ModuleType:
    """A package, imported where it is first needed.

    Args:
      name: what is imported.
      what: that needs it, for the message, such as "video files".
      extra: of byol_jax, that has it.

    Raises:
      UserError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: without a library of the system
        raise UserError(
            f"{what} need one more package ({error}): pip install 'byol_jax[{extra}]'."
        ) from error
