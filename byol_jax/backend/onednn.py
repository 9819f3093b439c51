"""Compiles and loads onednn.cc, and chooses what computes convolutions.

oneDNN and its headers come from two Python packages (`pip install 'byol_jax[cpu]'`). A C++ compiler
makes an extension of our source from them, in seconds, at the first use; it is kept in the user's
cache folder. Anyone who can write there can run code in our processes.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from byol_jax.backend import compile_cache, convolution
from byol_jax.backend.cpu_devices import cores
from byol_jax.errors import ConfigError

CONVOLUTIONS = AUTO, XLA, ONEDNN = "auto", "xla", "onednn"
PACKAGES = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")  # the library, and its headers
SOURCE = Path(__file__).with_name("onednn.cc")
COMPILERS = ("c++", "g++", "clang++")  # after the one that CXX names


class Convolution(NamedTuple):
    """What computes convolutions.

    Attributes:
      function: like `jax.lax.conv_general_dilated`.
      name: XLA or ONEDNN.
      threads: of each call, for ONEDNN; XLA's are its own.
      note: why it is XLA, where oneDNN would be faster.
    """

    function: Callable
    name: str = XLA
    threads: int = 1
    note: str = ""


class Extension(NamedTuple):
    """The loaded extension: the dtypes that it computes; or the reason why there is none."""

    dtypes: tuple[str, ...] = ()
    reason: str = ""


def choose_convolution(
    wanted: str, devices: int | None = None, dtype: str = "float32"
) -> Convolution:
    """What computes convolutions on the devices that JAX uses.

    Args:
      wanted: XLA; or AUTO or ONEDNN, which are oneDNN on a CPU where it can be loaded.
      devices: CPU devices that compute at the same time and share the cores; by default all.
      dtype: that of the network. oneDNN has bfloat16 on processors with AVX-512 only.
    """
    if wanted == XLA or jax.default_backend() != "cpu":
        return Convolution(jax.lax.conv_general_dilated)
    extension = _load()
    if extension.reason:
        return Convolution(jax.lax.conv_general_dilated, note=extension.reason)
    if dtype not in extension.dtypes:
        note = "on this processor it has float32 only (--config.dtype=float32)"
        return Convolution(jax.lax.conv_general_dilated, note=note)
    threads = _threads(devices or jax.local_device_count())
    return Convolution(_convolve_fn(threads, extension.dtypes), ONEDNN, threads)


def check_convolution(wanted: str, dtype: str = "float32") -> None:
    """Raises ConfigError if ONEDNN is wanted on a CPU and cannot be used."""
    note = choose_convolution(wanted, dtype=dtype).note
    if wanted == ONEDNN and note:
        raise ConfigError(
            f"config.cpu_convolution=onednn: oneDNN cannot be used ({note}); auto takes XLA then."
        )


@functools.cache  # so that equal networks have equal convolutions
def _convolve_fn(threads: int, dtypes: tuple[str, ...]) -> Callable:
    return functools.partial(convolution.conv_general_dilated, threads=threads, dtypes=dtypes)


def _threads(devices: int) -> int:
    """The threads of each device: together all cores, or OMP_NUM_THREADS of them."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    count = min(cores(), int(limit)) if limit.isdigit() else cores()
    return max(1, count // devices)


@functools.cache
def _load() -> Extension:
    """Makes `convolution.TARGET` known to XLA, once."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return Extension(reason="it is available on Linux with x86-64 only")
    try:
        library, include = _find_packages()
        file = _build(library, include)
        try:
            extension = ctypes.CDLL(str(file))
        except OSError:  # such as cut short by a full disk
            file.unlink(missing_ok=True)
            extension = ctypes.CDLL(str(_build(library, include)))
    except importlib.metadata.PackageNotFoundError:
        return Extension(reason="pip install 'byol_jax[cpu]'")
    except (OSError, RuntimeError) as error:
        return Extension(reason=str(error).rstrip(".") or type(error).__name__)
    jax.ffi.register_ffi_target(
        convolution.TARGET, jax.ffi.pycapsule(extension.byol_jax_convolution), platform="cpu"
    )
    extension.byol_jax_has_bfloat16.restype = ctypes.c_bool
    has_bfloat16 = extension.byol_jax_has_bfloat16()
    return Extension(("float32", "bfloat16") if has_bfloat16 else ("float32",))


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
      RuntimeError: there is no compiler, or it fails; or the cache folder cannot be written.
    """
    versions = [importlib.metadata.version(package) for package in (*PACKAGES, "jaxlib")]
    identity = hashlib.sha256(SOURCE.read_bytes())
    identity.update("\n".join([*versions, str(library)]).encode())
    folder = compile_cache.default_folder()
    try:
        folder = folder.expanduser()
        target = folder / f"onednn-{identity.hexdigest()[:16]}.so"
        if target.is_file():
            return target
        compiler = _find_compiler()
        folder.mkdir(parents=True, exist_ok=True)
        # Under another name first: other processes may be doing the same.
        handle, unfinished = tempfile.mkstemp(dir=folder, suffix=".unfinished")
    except OSError as error:
        raise RuntimeError(
            f"{folder} cannot be written ({error.strerror}), XDG_CACHE_HOME names another folder"
        ) from error
    os.close(handle)
    try:
        command = [
            *(compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-w", str(SOURCE)),
            *(f"-I{include}", f"-I{jax.ffi.include_dir()}"),
            *(str(library), f"-Wl,-rpath,{library.parent}", "-o", unfinished),
        ]
        done = subprocess.run(
            command,
            env=os.environ | {"LC_ALL": "C"},  # English messages
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
            raise RuntimeError(f"{compiler} failed ({lines[0]})")
        os.chmod(unfinished, 0o755)  # from 0600, for all who share the folder
        os.replace(unfinished, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    return target


def _find_compiler() -> str:
    names = (os.environ.get("CXX", ""), *COMPILERS)
    for found in map(shutil.which, filter(None, names)):
        if found:
            return found
    raise RuntimeError(f"no C++ compiler ({', '.join(COMPILERS)})")
