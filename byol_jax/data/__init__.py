"""From stored data to batches; the only room that imports TensorFlow.

A source of images (source.py; opened by open.py) gives raw examples and decodes them; subset.py
takes a part of it. pipeline.py makes training batches on the host, on_device.py on the devices;
eval.py makes evaluation batches. A source of other data (indexed.py: signals.py, audio.py,
video.py, text.py, image_text.py, interactions.py) loads examples by NumPy. A new kind of source of
images is a file here and a line in open.py. No networks, no training. TensorFlow is imported where
it is first needed: arrays, `npz:`, `embedded` and data other than images do without.
"""

from byol_jax.augment.crops import Crop
from byol_jax.data.arrays import ArraySource, from_arrays
from byol_jax.data.eval import CentralView, eval_batches, eval_views
from byol_jax.data.open import open_source
from byol_jax.data.source import ImageSource, ShardOptions, Source, match_classes, steps_per_epoch
from byol_jax.data.subset import hold_out, listed, some_of_each_class, subset

__all__ = [
    "ArraySource",
    "CentralView",
    "Crop",
    "ImageSource",
    "ShardOptions",
    "Source",
    "eval_batches",
    "eval_views",
    "from_arrays",
    "hold_out",
    "listed",
    "match_classes",
    "open_source",
    "some_of_each_class",
    "steps_per_epoch",
    "subset",
    "train_batches",
]


def __getattr__(name: str):
    if name == "train_batches":  # needs TensorFlow
        from byol_jax.data.pipeline import train_batches

        return train_batches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
