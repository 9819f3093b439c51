"""CPU devices: JAX can divide the cores of a machine into several devices."""

import os
import re

import jax

FEWEST_ROWS = 8  # of a batch on a device: with fewer, work that does not shrink with them counts
MAX_CPU_DEVICES = 16  # each has a copy of the state, and of images that are on the devices


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def most_cpu_devices(batch_size: int) -> int:
    """The largest number of devices, at most one for each core, that divides a batch.

    They are at most MAX_CPU_DEVICES. Each gets FEWEST_ROWS rows or more, unless it is the only one.
    """
    most = min(cores(), MAX_CPU_DEVICES, batch_size // FEWEST_ROWS)
    return next((n for n in range(most, 1, -1) if batch_size % n == 0), 1)


def use_cpu_devices(count: int) -> bool:
    """Makes JAX divide the CPU into so many devices; returns whether it will.

    It does not where XLA_FLAGS or JAX's own configuration sets a number, or where JAX has started.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if re.search(r"--xla_force_host_platform_device_count\b", flags):
        return False
    if jax.config.jax_num_cpu_devices != -1:
        return False
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the devices exist
        return False
    return True
