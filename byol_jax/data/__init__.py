"""From images to batches: the only package that imports TensorFlow.

What reads or decodes files needs TensorFlow, and imports it when it is first used. Arrays, `npz:`
and the embedded data set do without, as long as the views are cut on the device (residence.py).
"""

import importlib

_HOMES = {
    "ArraySource": ".arrays",
    "Crop": "..augment.crops",
    "ShardOptions": ".source",
    "Source": ".source",
    "check_same_classes": ".source",
    "eval_batches": ".evaluation",
    "from_arrays": ".arrays",
    "open_source": ".open",
    "steps_per_epoch": ".source",
    "train_batches": ".pipeline",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
