r"""Finds groups of images that are nearly the same, by the features of a trained encoder.

byol-jax dedupe RUN [--data=folder:PATH] [--split=NAME] [--against=SPLIT] [--threshold=NUMBER] \
    [--output=FILE.csv] [--step=N] [--index=FILE.npz] [--data_dir=DIR] \
    [--on_decode_error=error|skip] [--import=MODULE]

RUN is the folder of a run or of an exported encoder; the images are its training data, or --data.
A group is of images that are connected by pairs with a similarity of --threshold or more. Each line
has the similarity to the first image of the group, which is the one to keep: the largest, in
pixels. --output writes group, path, similarity and keep (yes or no). Nothing is deleted.

--against=SPLIT compares the images with those of another split, and not with each other: what is
in both leaks from training to test. The images of SPLIT are those to keep.

Similarities are cosines of whitened features (byol_jax/evaluate/duplicates.py) of an image together
with its mirror image. By default the threshold is chosen from the data: 95% of 500 of its images
are as similar to themselves without 5% of their width and height; it is at least 0.8.
"""

import os
from typing import TYPE_CHECKING, Any

from absl import flags

from byol_jax.cli import app, image_features
from byol_jax.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

CROP = 0.95  # side of the part that an image is compared with, and
FOUND = 0.95  # the share of images that are found by it,
IMAGES = 500  # among so many
LEAST = 0.8  # below it, most pairs are of different photographs
SHOWN = 20  # groups that are printed

COMMON = image_features.define()
AGAINST = flags.DEFINE_string("against", None, "Another split: finds images that are in both.")
THRESHOLD = flags.DEFINE_float(
    "threshold",
    None,
    "The smallest similarity of two duplicates; chosen from the data by default.",
    lower_bound=-1.0,
    upper_bound=1.0,
)
OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write.")


def main() -> None:
    """Prints the groups."""
    import numpy as np

    from byol_jax.evaluate import duplicates

    encoder = image_features.open_encoder(COMMON)
    source = image_features.open_source(COMMON, encoder)
    sources = [source]
    if AGAINST.value is not None:
        sources.append(image_features.open_source(COMMON, encoder, AGAINST.value))
        if sources[0].name == sources[1].name:
            raise ConfigError(f"--against={AGAINST.value} is the split itself: name another.")
        if COMMON.index.value is not None:
            raise ConfigError("--index keeps one split: leave it out with --against.")
    splits = [
        _distinct(image_features.of_source(COMMON, encoder, each, mirrored=True))
        for each in sources
    ]
    whiten = duplicates.whitening(np.concatenate([split.features for split in splits]))
    rows = [whiten(split.features) for split in splits]
    threshold = THRESHOLD.value
    if threshold is None:
        threshold = _choose(encoder, splits[0], rows[0], whiten)
    pairs, _ = duplicates.pairs(*rows[:1], threshold, *rows[1:])
    count = len(rows[0])
    if AGAINST.value is not None:
        pairs[:, 1] += count
    every, paths = np.concatenate(rows), [path for split in splits for path in split.paths]
    groups = duplicates.groups(pairs, len(every))
    table, extra = [], 0
    for number, members in enumerate(groups, 1):
        keeps, members = _in_order(members, paths, every, count)
        extra += len(members) - keeps
        for place, row in enumerate(members):
            similarity = min(float(every[row] @ every[members[0]]), 1.0)
            is_kept = "yes" if place < keeps else "no"
            table.append([number, paths[row], f"{similarity:.4f}", is_kept])
    _print(table, len(groups))
    what = source.name if AGAINST.value is None else " and ".join(each.name for each in sources)
    print(f"{what}: {len(groups)} groups, {extra} images too many, threshold {threshold:.4f}")
    if OUTPUT.value is not None:
        header = ["group", "path", "similarity", "keep"]
        image_features.write_csv("output", OUTPUT.value, header, table)
        print(f"written to {OUTPUT.value}")


def _distinct(images: image_features.Images) -> image_features.Images:
    """Without other names of the same file, such as links to it: who deletes one may lose both."""
    real: dict[str, int] = {}
    for row, path in enumerate(images.paths):
        if os.path.islink(path):
            real.setdefault(os.path.realpath(path), row)
        else:
            real[os.path.realpath(path)] = row
    kept = sorted(real.values())
    paths = [images.paths[row] for row in kept]
    return images._replace(rows=images.rows[kept], paths=paths, features=images.features[kept])


def _choose(encoder: Any, images: image_features.Images, rows: "np.ndarray", whiten: Any) -> float:
    """The threshold at which FOUND of IMAGES images are found again after a crop."""
    import numpy as np

    from byol_jax import data

    count = min(IMAGES, len(rows))
    chosen = np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False))
    some = data.subset(images.source, images.rows[chosen], f"{count} images, cropped")
    cropped, _ = image_features.embed(encoder, some, crop=CROP, mirrored=True)
    similarities = np.sum(whiten(cropped) * rows[chosen], axis=1)
    threshold = float(np.quantile(similarities, 1 - FOUND))
    print(
        f"{FOUND:.0%} of {count} images have a similarity of {threshold:.4f} or more to themselves "
        f"cropped by {1 - CROP:.0%}"
    )
    return max(threshold, LEAST)


def _in_order(
    members: "np.ndarray", paths: list[str], rows: "np.ndarray", count: int
) -> tuple[int, list[int]]:
    """How many images of a group to keep, and its images.

    First are those to keep, of which the first is the largest; then the most similar to it.
    """
    others = [row for row in members.tolist() if row >= count]  # of --against: all are kept
    candidates = others or members.tolist()
    first = max(candidates, key=lambda row: (*_size(paths[row]), -row))

    def key(row: int) -> tuple:
        return row != first, row < count, -float(rows[row] @ rows[first])

    return max(1, len(others)), sorted(members.tolist(), key=key)


def _size(path: str) -> tuple[int, int]:
    """The pixels and the bytes of an image file; zeros of what is no file or not readable."""
    from PIL import Image

    try:
        size = os.stat(path).st_size
    except OSError:
        return 0, 0
    try:
        with Image.open(path) as image:  # reads the header only
            return image.width * image.height, size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0, size


def _print(table: list[list], groups: int) -> None:
    """Prints the first groups."""
    previous = None
    for number, path, similarity, keep in table:
        if number > SHOWN:
            more = "" if OUTPUT.value else "; --output=FILE.csv writes all"
            print(f"and {groups - SHOWN} more groups{more}")
            return
        if number != previous:
            print(f"group {number}")
        previous = number
        mark = "keep" if keep == "yes" else "    "
        print(f"  {mark}  {similarity}  {image_features.printable(path)}")


if __name__ == "__main__":
    app.run(main, "RUN")
