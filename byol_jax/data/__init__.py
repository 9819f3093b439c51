"""From stored images to batches; the only room that imports TensorFlow.

A source (source.py; opened by open.py) gives raw examples and decodes them; pipeline.py makes
training batches of them on the host, on_device.py on the devices, and eval.py makes evaluation
batches. A new kind of source is a file here and a line in open.py. No networks, no training.
TensorFlow is imported where it is first needed: arrays, `npz:` and `embedded` do without it.
"""

from byol_jax.augment.crops import Crop
from byol_jax.data.arrays import ArraySource, from_arrays
from byol_jax.data.eval import CentralView, eval_batches, eval_views
from byol_jax.data.open import open_source
from byol_jax.data.source import ShardOptions, Source, match_classes, steps_per_epoch

__all__ = [
    "ArraySource",
    "CentralView",
    "Crop",
    "ShardOptions",
    "Source",
    "eval_batches",
    "eval_views",
    "from_arrays",
    "match_classes",
    "open_source",
    "steps_per_epoch",
    "train_batches",
]


def __getattr__(name: str):
    if name == "train_batches":  # needs TensorFlow
        from byol_jax.data.pipeline import train_batches

        return train_batches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
