r"""Finds the images that are most similar to given ones, by the features of a trained encoder.

byol-jax search RUN IMAGE... [--data=folder:PATH] [--split=NAME] [--top=10] [--step=N] \
    [--output=FILE.csv] [--picture=FILE.png] [--index=FILE.npz] [--data_dir=DIR] \
    [--on_decode_error=error|skip] [--import=MODULE]

RUN is the folder of a run or of an exported encoder, and IMAGE an image file of any size. Prints
the rank, cosine similarity and path of the nearest images of the run's training data, or of --data;
an image is no hit of itself. --output writes query, rank, similarity and path.
--picture draws a row for each query: itself, then its hits.

Features of the data are kept in RUN/embeddings, or in --index: a second search only computes images
that are new or changed. Another checkpoint computes all of them again.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from byol_jax.cli import app, image_features

if TYPE_CHECKING:
    import numpy as np

    from byol_jax.data import ImageSource

SIDE = 160  # pixels of an image in a picture

COMMON = image_features.define()
IMAGE = flags.DEFINE_multi_string("image", [], "IMAGE: a file to search for; may be repeated.")
TOP = flags.DEFINE_integer("top", 10, "How many images to find for each.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write.")
PICTURE = flags.DEFINE_string("picture", None, "The PNG file to draw.")


def main() -> None:
    """Searches for each image."""
    image_features.check_files(IMAGE.value, "an image file")

    import numpy as np

    from byol_jax.data import files
    from byol_jax.data.image_files import ImageFiles
    from byol_jax.errors import DataError
    from byol_jax.evaluate import neighbours

    encoder = image_features.open_encoder(COMMON)
    record, unlabelled = encoder.config, [-1] * len(IMAGE.value)
    named = files.Files(Path(), IMAGE.value, unlabelled, None, [])
    value_range = tuple(record.get("value_range", ())) or None
    given = ImageFiles("the images to search for", named, record["channels"], value_range)

    def refuse(_: int, message: str) -> None:
        raise DataError(f"{message}: name an image file.")

    queries, _ = image_features.embed(encoder, given, left_out=refuse)
    found = image_features.of_source(COMMON, encoder, image_features.open_source(COMMON, encoder))
    indices, similarities = neighbours.nearest(queries, found.features, TOP.value + 1)
    real = {os.path.realpath(path): path for path in IMAGE.value}
    own = {i for i, path in enumerate(found.paths) if os.path.realpath(path) in real}
    table, hits = [], []
    for path, near, scores in zip(IMAGE.value, indices, similarities, strict=True):
        same = [i in own and os.path.samefile(found.paths[i], path) for i in near]
        kept = np.flatnonzero(~np.array(same))[: TOP.value]
        hits.append((near[kept], scores[kept]))
        print(image_features.printable(path))
        for rank, (row, score) in enumerate(zip(*hits[-1], strict=True), 1):
            hit = found.paths[row]
            print(f"  {rank:3d}  {score:.4f}  {image_features.printable(hit)}")
            table.append([path, rank, f"{score:.6f}", hit])
    if OUTPUT.value is not None:
        header = ["query", "rank", "similarity", "path"]
        image_features.write_csv("output", OUTPUT.value, header, table)
        print(f"written to {OUTPUT.value}")
    if PICTURE.value is not None:
        rows = [found.rows[near] for near, _ in hits]
        sheet = _sheet(given, found.source, rows, [scores for _, scores in hits])
        image_features.write_file("picture", PICTURE.value, sheet)
        print(f"drawn to {PICTURE.value}")


def _sheet(
    given: "ImageSource",
    source: "ImageSource",
    rows: list["np.ndarray"],
    similarities: list["np.ndarray"],
) -> bytes:
    """A PNG file with a row for each query: itself, and its hits with their similarities."""
    import numpy as np
    from PIL import Image, ImageDraw

    height = SIDE + 16
    sheet = Image.new("RGB", ((1 + max(map(len, rows))) * SIDE, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    queries = _thumbnails(given, np.arange(len(rows)))
    found = _thumbnails(source, np.unique(np.concatenate(rows)))
    for number, (near, scores) in enumerate(zip(rows, similarities, strict=True)):
        top = number * height
        sheet.paste(queries[number], (0, top))
        draw.text((4, top + SIDE + 2), "query", fill="black")
        for column, (row, score) in enumerate(zip(near, scores, strict=True), 1):
            sheet.paste(found[row], (column * SIDE, top))
            draw.text((column * SIDE + 4, top + SIDE + 2), f"{score:.4f}", fill="black")
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def _thumbnails(source: "ImageSource", rows: "np.ndarray") -> dict:
    """Central squares of some images, by their index; `rows` ascend."""
    from byol_jax import data
    from byol_jax.train.plots import as_picture

    if not len(rows):
        return {}
    some = data.subset(source, rows, source.name)
    batches = data.eval_batches(some, batch_size=64, image_size=SIDE - 4, crop_fraction=1.0)
    images = [image for batch, _ in batches for image in batch]
    return {
        row: as_picture(image).convert("RGB")
        for row, image in zip(rows.tolist(), images, strict=True)
    }


if __name__ == "__main__":
    app.run(main, "RUN IMAGE...")
