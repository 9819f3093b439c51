"""How JAX computes on this machine: CPU devices, convolutions, and the cache of compiled programs.

XLA computes a convolution on a CPU with one core, forward at about half of oneDNN's speed and the
gradient of the kernel at a fifth. So a run splits its batches over several CPU devices
(cpu_devices.py), and its encoder convolves through oneDNN where that can be loaded (onednn.py and
onednn.cc; convolution.py makes it a function of JAX). A GPU or TPU needs neither. Nothing here
knows about networks, runs or configs.
"""

from byol_jax.backend.cpu_devices import (
    MAX_CPU_DEVICES,
    check_cpu_devices,
    cores,
    most_cpu_devices,
    processor,
    use_cpu_devices,
)
from byol_jax.backend.onednn import (
    AUTO,
    CONVOLUTIONS,
    ONEDNN,
    XLA,
    Convolution,
    check_convolution,
    choose_convolution,
)

__all__ = [
    "AUTO",
    "CONVOLUTIONS",
    "MAX_CPU_DEVICES",
    "ONEDNN",
    "XLA",
    "Convolution",
    "check_convolution",
    "check_cpu_devices",
    "choose_convolution",
    "cores",
    "most_cpu_devices",
    "processor",
    "use_cpu_devices",
]
