"""Features of a data set, for programs that need no encoder at all.

    features.npz       embeddings (n, d), float32; labels (n,), int32, where there are any;
                       names (n,), strings; nothing pickled
    features.parquet   the same as columns: name, label, embedding (a list of d floats)
    config.json        of what, by which encoder

Rows follow the source's own order. Names are paths for a folder of images, and the place in the
source for any other. Images are cropped as in evaluation: the central square, then resized.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.parquet

from byol_jax import data
from byol_jax.export import inference
from byol_jax.runs import paths

if TYPE_CHECKING:
    from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.features.1"
BATCH_SIZE = 256  # images at a time
ROW_GROUP = 8192  # rows that a reader of the Parquet file takes at a time
LOAD = """\
import numpy as np
import pyarrow.parquet

arrays = np.load("features.npz")
table = pyarrow.parquet.read_table("features.parquet")
"""


def save(
    encoder: "Encoder", directory: Path, source: "data.Source", *, crop_fraction: float
) -> None:
    """Embeds all of a source and writes what comes out.

    Args:
      encoder: which embeds.
      directory: made if need be; an earlier export of this kind is replaced.
      source: images with as many channels as the encoder takes.
      crop_fraction: side of the central square as a share of the shorter side of the image.

    Raises:
      UserError: the folder cannot be written, or holds something else; an image cannot be decoded.
    """
    batches = data.eval_batches(
        source,
        batch_size=BATCH_SIZE,
        image_size=encoder.config["image_size"],
        crop_fraction=crop_fraction,
    )
    class_names = source.class_names
    record = {
        "format": FORMAT,
        "data": source.name,
        "num_examples": source.num_examples,
        "class_names": None if class_names is None else list(class_names),
        "crop_fraction": crop_fraction,
        "load": LOAD.splitlines(),
        **encoder.config,
    }
    size = inference.num_features(encoder)
    arrays = {
        "embeddings": np.empty((source.num_examples, size), np.float32),
        "names": np.array(source.names()),
    }
    if class_names is not None:
        arrays["labels"] = np.empty(source.num_examples, np.int32)
    with paths.write_folder(directory, record) as new:
        start = 0
        for images, labels in batches:
            stop = start + len(images)
            arrays["embeddings"][start:stop] = encoder.embed(images, BATCH_SIZE)
            if labels is not None:
                arrays["labels"][start:stop] = labels
            start = stop
        np.savez(new / "features.npz", **arrays)
        columns = {"name": pyarrow.array(arrays["names"])}
        if class_names is not None:
            columns["label"] = pyarrow.array(arrays["labels"])
        values = pyarrow.array(arrays["embeddings"].reshape(-1))
        columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(values, size)
        table = pyarrow.table(columns)
        pyarrow.parquet.write_table(table, new / "features.parquet", row_group_size=ROW_GROUP)
