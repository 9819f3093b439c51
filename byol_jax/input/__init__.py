"""From images to batches: the only package that imports TensorFlow.

TensorFlow is imported when a name below is first used, so that `byol_jax.input.embedded`, which
draws its images with NumPy alone, works and stays quick without it.
"""

import importlib

_HOMES = {
    "Crop": "crops",
    "Share": "base",
    "Source": "base",
    "check_same_classes": "base",
    "eval_batches": "pipeline",
    "from_arrays": "arrays",
    "open_source": "sources",
    "steps_per_epoch": "pipeline",
    "train_batches": "pipeline",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
