"""JAX's persistent cache of compiled programs, and the time spent on compiling.

The name of an entry is a hash of the program, the versions, the flags and the machine's
instructions, so machines of several kinds can share a folder. Anyone who can write to the folder
can run code in our processes.
"""

import contextlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax

# In bytes. The entries of a run take one to ten MB.
MAX_CACHE_SIZE = 2**30
# JAX's warning when it cannot read an entry, before it compiles instead.
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^'/]+)'")
# Stages of a program: from Python to a jaxpr, to MLIR, to the device's code (or from the cache).
_BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"
_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    _BACKEND_COMPILE,
)


class Compilations:
    """Counts programs that JAX compiles or loads while the context is open.

    Attributes:
      count: number of programs.
      seconds: total time to trace, lower, and compile or load them.
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
    """byol_jax in the user's cache folder, $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "byol_jax"


@contextlib.contextmanager
def use_cache(folder: str | os.PathLike) -> Iterator[str]:
    """Caches compiled programs in a local folder, and replaces damaged entries in this context.

    An entry in JAX's own configuration, such as JAX_COMPILATION_CACHE_DIR, has precedence. At the
    start, old entries are removed if the folder holds more than MAX_CACHE_SIZE.

    Yields:
      A line if the folder cannot be used, in which case nothing is cached; else "".
    """
    if jax.config.jax_compilation_cache_dir:
        yield ""
        return
    problem, replace_damaged = "", contextlib.nullcontext()
    try:
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _make_room(folder, MAX_CACHE_SIZE)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        problem = (
            f"Compiled programs are not kept: {folder} cannot be written "
            f"({getattr(error, 'strerror', None) or error}); --compilation_cache names another "
            "folder."
        )
    else:
        replace_damaged = _replace_damaged(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Most of the hundred programs of a start compile in hundredths of a second and load in
        # thousandths; JAX's default keeps only those that take 1 s.
        if jax.config.jax_persistent_cache_min_compile_time_secs == 1:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with replace_damaged:
        yield problem


def _make_room(folder: Path, largest: int) -> None:
    """Removes the oldest entries down to half of `largest` bytes, if the folder holds more."""
    entries = []
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            entries.append((entry.stat(), entry))
    total = sum(stat.st_size for stat, _ in entries)
    if total <= largest:
        return
    for stat, entry in sorted(entries, key=lambda pair: pair[0].st_mtime):
        if total <= largest / 2:
            return
        entry.unlink(missing_ok=True)
        total -= stat.st_size


@contextlib.contextmanager
def _replace_damaged(folder: Path) -> Iterator[None]:
    """Removes entries that JAX warns about (cut short, such as by a full disk), silently."""
    # JAX would not overwrite them, and warn at every start. The warning names the program without
    # its hash, so other entries of that name are removed too.

    def showwarning(message, *args, **kwargs) -> None:
        damaged = _DAMAGED.match(str(message))
        if not damaged:
            return show(message, *args, **kwargs)
        with contextlib.suppress(OSError):  # others own the folder, or have removed it
            for entry in folder.iterdir():
                if entry.name.startswith(f"{damaged[1]}-"):
                    entry.unlink(missing_ok=True)

    show, warnings.showwarning = warnings.showwarning, showwarning
    try:
        yield
    finally:
        warnings.showwarning = show
