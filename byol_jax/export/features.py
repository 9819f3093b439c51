"""Features of a data set, for programs that need no encoder.

    features.npz       embeddings (n, d), float32; labels (n,), int32, if the source has labels;
                       names (n,), strings; nothing pickled
    features.parquet   the same as columns: name, label, embedding (a list of d floats)
    config.json        the data and the encoder; which images were left out

Rows are in the order of the source. A name is the path of an image in a folder, and the index in
any other source. Images are cropped as in evaluation: the central square, then resized.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from byol_jax import data
from byol_jax.errors import DataError
from byol_jax.export import inference
from byol_jax.runs import paths
from byol_jax.runs.encoder import Encoder

FORMAT = "byol_jax.features.1"
BATCH_SIZE = 256
ROW_GROUP = 8192  # rows that a reader of the Parquet file loads at a time
LOAD = """\
import numpy as np
import pyarrow.parquet

arrays = np.load("features.npz")
table = pyarrow.parquet.read_table("features.parquet")
"""


def save(
    encoder: Encoder,
    directory: Path,
    source: data.Source,
    *,
    crop_fraction: float,
    on_decode_error: Callable[[str], None] | None = None,
) -> None:
    """Embeds all images of a source and writes the features.

    Args:
      encoder: computes the embeddings.
      directory: made if needed; an earlier export of this kind is replaced.
      source: images with as many channels as the encoder takes.
      crop_fraction: side of the central square as a fraction of the image's shorter side.
      on_decode_error: if given, an image that cannot be decoded is left out, and this is called
        with its name and error; if None, it raises DataError.

    Raises:
      CheckpointError: the folder cannot be written, or holds something else.
      DataError: an image cannot be decoded, or none can.
    """
    left_out: dict[int, str] = {}  # by index in the source

    def leave_out(index: int, message: str) -> None:
        left_out[index] = message
        on_decode_error(message)

    batches = data.eval_batches(
        source,
        batch_size=BATCH_SIZE,
        image_size=encoder.config["image_size"],
        crop_fraction=crop_fraction,
        on_decode_error=on_decode_error and leave_out,
    )
    class_names = source.class_names
    record = {
        "format": FORMAT,
        "data": source.name,
        "class_names": class_names and list(class_names),
        "crop_fraction": crop_fraction,
        "load": LOAD.splitlines(),
        **encoder.config,
    }
    size = inference.num_features(encoder)
    embeddings = np.empty((source.num_examples, size), np.float32)
    labels = np.empty(source.num_examples, np.int32)
    with paths.write_folder(directory, record) as new:
        n = 0
        for images, found in batches:
            rows = slice(n, n + len(images))
            embeddings[rows] = encoder.embed(images, BATCH_SIZE)
            labels[rows] = -1 if found is None else found
            n += len(images)
        if n == 0:
            raise DataError(f"{source.name} holds no image that can be decoded: name another.")
        record |= {"num_examples": n, "left_out": list(left_out.values())}
        names = np.delete(np.array(source.names()), list(left_out))
        arrays = {"embeddings": embeddings[:n], "names": names}
        columns = {"name": pyarrow.array(names)}
        if class_names is not None:
            arrays["labels"] = labels[:n]
            columns["label"] = pyarrow.array(labels[:n])
        np.savez(new / "features.npz", **arrays)
        values = pyarrow.array(embeddings[:n].reshape(-1))
        columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(values, size)
        table = pyarrow.table(columns)
        pyarrow.parquet.write_table(table, new / "features.parquet", row_group_size=ROW_GROUP)
