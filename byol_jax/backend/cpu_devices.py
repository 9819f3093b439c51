"""CPU devices: JAX can divide the cores of a machine into several devices."""

import contextlib
import os
import platform
import re
from pathlib import Path

import jax

from byol_jax.errors import ConfigError

FEWEST_ROWS = 8  # of a batch on a device: with fewer, work that does not shrink with them counts
MAX_CPU_DEVICES = 16  # each has a copy of the state, and of images that are on the devices
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds in a period, or max


def cores() -> int:
    """The cores that this process may use."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        count = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or no quota
        quota, period = map(int, QUOTA.read_text().split())
        count = min(count, max(1, quota // period))
    return count


def processor() -> str:
    """The name of the processor, as the system reports it."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def most_cpu_devices(batch_size: int) -> int:
    """The largest number of devices, at most one for each core, that divides a batch.

    They are at most MAX_CPU_DEVICES. Each gets FEWEST_ROWS rows or more, unless it is the only one.
    """
    most = min(cores(), MAX_CPU_DEVICES, batch_size // FEWEST_ROWS)
    return next((n for n in range(most, 1, -1) if batch_size % n == 0), 1)


def use_cpu_devices(count: int) -> None:
    """Makes JAX divide the CPU into so many devices.

    Has no effect where XLA_FLAGS or JAX's own configuration sets a number, or JAX has started.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    is_set = re.search(r"--xla_force_host_platform_device_count\b", flags)
    if not is_set and jax.config.jax_num_cpu_devices == -1:
        with contextlib.suppress(RuntimeError):  # the devices exist
            jax.config.update("jax_num_cpu_devices", count)


def check_cpu_devices(requested: int) -> None:
    """Raises ConfigError if JAX computes on a CPU, but on another number of devices."""
    found = jax.local_device_count()
    if jax.default_backend() == "cpu" and found != requested:
        raise ConfigError(
            f"--cpu_devices={requested}, but JAX already has {found}: leave the flag out, or take "
            "--xla_force_host_platform_device_count out of XLA_FLAGS and unset JAX_NUM_CPU_DEVICES."
        )
