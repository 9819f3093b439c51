"""What compiling costs: programs kept from one start to the next, and the time that it took.

JAX keeps compiled programs in a folder (its persistent compilation cache). An entry's name is a
hash of the program, the versions, the flags and the machine's instructions, so machines of several
kinds can share a folder. Whoever can write there can run code in our processes.
"""

import contextlib
import os
import re
import tempfile
import warnings
from pathlib import Path

import jax

# In bytes; above it the oldest entries go. Those of a run take one to ten MB.
LARGEST_CACHE = 2**30
# What JAX warns of when it cannot read an entry, before it compiles instead.
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^'/]+)'")
# Of a program: from Python to a jaxpr, to MLIR, to the device's code (or that from the cache).
_BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"
_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    _BACKEND_COMPILE,
)


class Compilations:
    """Counts programs that JAX compiles, or finds compiled, while the context is open.

    Attributes:
      count: how many.
      seconds: how long that took: to trace, to lower, and to compile or to load.
    """

    def __init__(self):
        self.count = 0
        self.seconds = 0.0

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_) -> None:
        if event in _COMPILING:
            self.seconds += seconds
            self.count += event == _BACKEND_COMPILE


def default_folder() -> Path:
    """byol_jax in the user's folder for caches: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "byol_jax"


def use_cache(folder: str | os.PathLike) -> str:
    """Keeps compiled programs in a folder of this machine, and takes them from there.

    What the user told JAX itself wins: a folder (JAX_COMPILATION_CACHE_DIR), or which programs are
    worth keeping. The folder is kept below `LARGEST_CACHE`, and damaged entries are made anew.

    Returns:
      A sentence if the folder cannot be used, else nothing: the run goes on without.
    """
    if jax.config.jax_compilation_cache_dir:
        return ""
    try:
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _make_room(folder, LARGEST_CACHE)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        reason = getattr(error, "strerror", None) or error
        return (
            f"Compiled programs are not kept: {folder} cannot be written ({reason}); "
            "--compilation_cache names another folder."
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Of the hundred programs of a start most take some hundredths of a second to compile, and some
    # thousandths to load. 1 s is JAX's own default.
    if jax.config.jax_persistent_cache_min_compile_time_secs == 1:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    _replace_damaged(folder)
    return ""


def _make_room(folder: Path, largest: int) -> None:
    """Removes the oldest entries of a folder that holds too much, until half of that is left."""
    entries = []
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            entries.append((entry.stat(), entry))
    total = sum(stat.st_size for stat, _ in entries)
    if total <= largest:
        return
    for stat, entry in sorted(entries, key=lambda pair: pair[0].st_mtime):
        if total <= largest / 2:
            return
        entry.unlink(missing_ok=True)
        total -= stat.st_size


def _replace_damaged(folder: Path) -> None:
    """Removes an entry that JAX warns of (cut short, such as by a full disk), and says nothing.

    JAX would never write over it, and warn at every start. The warning has the program's name
    without the hash: its other entries go too, and will be made again when they are needed.
    """
    show = warnings.showwarning

    def showwarning(message, *args, **kwargs) -> None:
        damaged = _DAMAGED.match(str(message))
        if not damaged:
            return show(message, *args, **kwargs)
        with contextlib.suppress(OSError):  # of a folder that others own, or have removed
            for entry in folder.iterdir():
                if entry.name.startswith(f"{damaged[1]}-"):
                    entry.unlink(missing_ok=True)

    warnings.showwarning = showwarning
