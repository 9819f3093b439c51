"""How JAX computes on this machine: CPU devices, convolutions, and the cache of compiled programs.

XLA computes convolutions on a CPU with one core, at half of oneDNN's speed or less. So a run splits
its batches over several CPU devices (cpu_devices.py), and its encoder convolves through oneDNN
where that can be loaded (onednn.py and onednn.cc; convolution.py makes it a function of JAX). A GPU
or TPU needs neither. Nothing here knows about networks, runs or configs.
"""

from byol_jax.backend.cpu_devices import (
    MAX_CPU_DEVICES,
    cores,
    most_cpu_devices,
    use_cpu_devices,
)
from byol_jax.backend.onednn import AUTO, CONVOLUTIONS, ONEDNN, XLA, choose_convolution

__all__ = [
    "AUTO",
    "CONVOLUTIONS",
    "MAX_CPU_DEVICES",
    "ONEDNN",
    "XLA",
    "choose_convolution",
    "cores",
    "most_cpu_devices",
    "use_cpu_devices",
]
