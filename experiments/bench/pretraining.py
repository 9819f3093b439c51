"""Short runs of `pretrain`, each in a process of its own, as a user starts it."""

import os
import sys
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"


def command(preset: str, changes: dict[str, object], workdir: str, cache: str = "") -> list[str]:
    """The words that start a run.

    Args:
      preset: a file of experiments/configs.
      changes: keys and values of its config.
      workdir: the folder of the run.
      cache: of compiled programs; none if empty.
    """
    return [
        *(sys.executable, "-m", "byol_jax.cli.pretrain", f"--config={CONFIGS / preset}"),
        *(f"--workdir={workdir}", f"--compilation_cache={cache}"),
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


def environment() -> dict[str, str]:
    """This process's, but for a cache of compiled programs, which would have precedence."""
    return {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
