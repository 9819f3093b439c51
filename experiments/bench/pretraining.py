"""Short runs of `byol-jax pretrain`, each in its own process."""

import os
import sys


def command(preset: str, changes: dict[str, object], workdir: str, cache: str = "") -> list[str]:
    """The command line of a run.

    Args:
      preset: its name.
      changes: keys and values of its config.
      workdir: the folder of the run.
      cache: folder of compiled programs; none if empty.
    """
    return [
        *(sys.executable, "-m", "byol_jax.cli", "pretrain", f"--config={preset}"),
        "--noreport",
        *(f"--workdir={workdir}", f"--compilation_cache={cache}"),
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


def environment() -> dict[str, str]:
    """This process's environment without a cache of compiled programs, which has precedence."""
    return {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
