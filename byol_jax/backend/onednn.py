"""Compiles and loads onednn.cc, and chooses what computes convolutions.

The library and its headers come from two Python packages (`pip install 'byol_jax[cpu]'`). A C++
compiler makes an extension of a hundred lines from them once, in seconds; it is kept in the user's
cache folder. Anyone who can write there can run code in our processes.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from byol_jax.backend import compile_cache, convolution
from byol_jax.backend.cpu_devices import cores
from byol_jax.errors import ConfigError

CONVOLUTIONS = AUTO, XLA, ONEDNN = "auto", "xla", "onednn"
PACKAGES = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")  # the library, and its headers
SOURCE = Path(__file__).with_name("onednn.cc")
COMPILERS = ("c++", "g++", "clang++")


def choose_convolution(wanted: str, devices: int | None = None) -> tuple[Callable, str]:
    """What computes convolutions on the devices that JAX uses.

    Args:
      wanted: XLA; ONEDNN; or AUTO, which is oneDNN on a CPU where it can be loaded.
      devices: CPU devices that compute at the same time and share the cores; by default all.

    Returns:
      A function like `jax.lax.conv_general_dilated`, and its description for a user.

    Raises:
      ConfigError: ONEDNN is wanted and cannot be loaded; the message has the reason.
    """
    if wanted == XLA or jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated, "XLA"
    reason = _register()
    if not reason:
        threads = _threads(devices or jax.local_device_count())
        return _convolution(threads), f"oneDNN, {threads} thread{'s' * (threads > 1)} each"
    if wanted == ONEDNN:
        raise ConfigError(f"oneDNN cannot compute the convolutions: {reason}.")
    return jax.lax.conv_general_dilated, f"XLA (for oneDNN: {reason})"


@functools.cache  # so that equal networks have equal convolutions
def _convolution(threads: int) -> Callable:
    return functools.partial(convolution.conv_general_dilated, threads=threads)


def _threads(devices: int) -> int:
    """The threads of each device: together all cores, but OMP_NUM_THREADS each at most."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    share = cores() // devices
    return max(1, min(share, int(limit)) if limit.isdigit() else share)


@functools.cache
def _register() -> str:
    """Makes `convolution.TARGET` known to XLA; returns "", or the reason why it cannot be."""
    try:
        library, include = _find_packages()
        extension = ctypes.CDLL(str(_build(library, include)))
    except importlib.metadata.PackageNotFoundError:
        return "pip install 'byol_jax[cpu]'"
    except (OSError, RuntimeError) as error:
        return str(error).rstrip(".") or type(error).__name__
    jax.ffi.register_ffi_target(
        convolution.TARGET, jax.ffi.pycapsule(extension.byol_jax_convolution), platform="cpu"
    )
    return ""


def _find_packages() -> tuple[Path, Path]:
    """The file of oneDNN's library and the folder of its headers."""

    def find(package: str, name: str) -> Path:
        for file in importlib.metadata.files(package) or ():
            if file.as_posix().endswith(name):
                return Path(file.locate()).resolve()
        raise RuntimeError(f"the package {package} lacks {name}: install it again")

    headers = find(PACKAGES[1], "include/oneapi/dnnl/dnnl.hpp")
    return find(PACKAGES[0], "libdnnl.so.3"), headers.parents[2]


def _build(library: Path, include: Path) -> Path:
    """Compiles the extension, unless it was; returns its file.

    Raises:
      RuntimeError: there is no compiler, or it fails.
      OSError: the cache folder cannot be written.
    """
    versions = [importlib.metadata.version(package) for package in (*PACKAGES, "jaxlib")]
    identity = hashlib.sha256(SOURCE.read_bytes())
    identity.update("\n".join([*versions, str(library)]).encode())
    folder = compile_cache.default_folder().expanduser()
    target = folder / f"onednn-{identity.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise RuntimeError(f"no C++ compiler ({', '.join(COMPILERS)})")
    folder.mkdir(parents=True, exist_ok=True)
    # Under another name first: other processes may be doing the same.
    handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".unfinished")
    os.close(handle)
    try:
        command = [
            *(compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-w", str(SOURCE)),
            *(f"-I{include}", f"-I{jax.ffi.include_dir()}"),
            *(str(library), f"-Wl,-rpath,{library.parent}", "-o", unfinished),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
            raise RuntimeError(f"{compiler} failed ({lines[0]})")
        os.replace(unfinished, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    return target
