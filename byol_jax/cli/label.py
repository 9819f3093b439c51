r"""Labels all images from a few labels, and names the images that are worth labelling next.

byol-jax label RUN [--few=labels.csv] [--output=FILE.csv] [--suggest=20] \
    [--suggestions=FILE.csv] [--data=folder:PATH] [--split=NAME] [--step=N] [--index=FILE.npz] \
    [--data_dir=DIR] [--on_decode_error=error|skip] [--import=MODULE]

RUN is the folder of a run or of an exported encoder; the images are its training data, or --data.
Labels of theirs, if there are any, are not used.

--few is a table with the columns path and label. Paths are absolute, or relative to the folder of
the images or to the table. A classifier learns them, and --output writes path, label and confidence
of all other images.
--suggest=N prints N images to label next: uncertain ones that differ from each other. Without --few
they are a first set, one of each of N clusters. --suggestions writes them as a table for --few,
with an empty column label to fill in; rows without a label are left out there.
"""

import os
from collections import Counter
from pathlib import Path

from absl import flags

from byol_jax.cli import app, image_features
from byol_jax.errors import ConfigError, DataError

COLUMNS = ("path", "label")

COMMON = image_features.define()
FEW = flags.DEFINE_string("few", None, "A CSV file with the columns path and label.")
OUTPUT = flags.DEFINE_string("output", None, "The CSV file of predictions to write.")
SUGGEST = flags.DEFINE_integer(
    "suggest", None, "How many images to suggest for labelling.", lower_bound=1
)
SUGGESTIONS = flags.DEFINE_string("suggestions", None, "The CSV file of suggestions to write.")


def main() -> None:
    """Predicts labels and suggests images."""
    if FEW.value is None and SUGGEST.value is None:
        raise ConfigError("give labels with --few=labels.csv, or ask what to label: --suggest=20.")
    if FEW.value is None and OUTPUT.value is not None:
        raise ConfigError("--output is for predictions, which need labels: add --few=labels.csv.")
    if SUGGEST.value is None and SUGGESTIONS.value is not None:
        raise ConfigError("--suggestions is for --suggest: add it, or leave --suggestions out.")
    table = {} if FEW.value is None else _read(Path(FEW.value))

    import numpy as np

    from byol_jax.evaluate import few_labels

    encoder = image_features.open_encoder(COMMON)
    source = image_features.open_source(COMMON, encoder)
    labels = _by_row(table, source)
    images = image_features.of_source(COMMON, encoder, source)
    place = {row: index for index, row in enumerate(images.rows.tolist())}
    known = np.array([place[row] for row in labels if row in place], np.int64)
    texts = [label for row, label in labels.items() if row in place]
    names, numbers = np.unique(texts, return_inverse=True)
    if FEW.value is not None:
        found = few_labels.probabilities(images.features, known, numbers)
        _predict(images, known, found, names)
    if SUGGEST.value is not None:
        chosen = few_labels.suggest(images.features, SUGGEST.value, known, numbers)
        paths = [images.paths[index] for index in chosen]
        print("label next:")
        for path in paths:
            print(f"  {image_features.printable(path)}")
        if SUGGESTIONS.value is not None:
            rows = [[path, ""] for path in paths]
            image_features.write_csv("suggestions", SUGGESTIONS.value, COLUMNS, rows)
            print(f"written to {SUGGESTIONS.value}")


def _predict(images: image_features.Images, known, found, names) -> None:
    """Prints how many images get which label, and writes the table."""
    import numpy as np

    others = np.setdiff1d(np.arange(len(found)), known)
    best, sure = found.argmax(axis=1), found.max(axis=1)
    given = ", ".join(
        f"{name} {count}" for name, count in Counter(names[best[others]]).most_common()
    )
    print(f"{len(known)} labels of {len(names)} classes; predicted: {given or 'none'}")
    if len(others):
        print(f"mean confidence {sure[others].mean():.2f}")
    if OUTPUT.value is not None:
        rows = [[images.paths[i], names[best[i]], f"{sure[i]:.4f}"] for i in others]
        image_features.write_csv("output", OUTPUT.value, ["path", "label", "confidence"], rows)
        print(f"written to {OUTPUT.value}")


def _read(path: Path) -> dict[str, str]:
    """The labels of a table by path; rows without a label are left out."""
    from byol_jax.data import lists, records

    rows, _ = lists.read_table(path, COLUMNS, None)
    rows = [(line, row) for line, row in rows if (row["label"] or "").strip()]
    if rows:
        records.labels_of(path, ((line, row["label"]) for line, row in rows))  # refuses odd ones
    table: dict[str, str] = {}
    for line, row in rows:
        name, label = row["path"] or "", row["label"].strip()
        if table.setdefault(name, label) != label:
            raise DataError(
                f"line {line} of {path}: {image_features.printable(name)} is {table[name]!r} and "
                f"{label!r}: give each image one label."
            )
    if not table:
        raise DataError(f"--few={path} holds no label: fill in some, or leave --few out.")
    if len({*table.values()}) < 2:
        raise DataError(
            f"--few={path} has labels of one class only: label images of another one too."
        )
    return table


def _by_row(table: dict[str, str], source) -> dict[int, str]:
    """Labels by the index of an image in the source; raises DataError for an unknown path."""
    paths = {path: row for row, path in enumerate(image_features.paths_of(source))}
    names = {name: row for row, name in enumerate(source.names())} | paths
    real = {}
    if not all(path in names for path in table):  # only then is every path resolved
        real = {os.path.realpath(path): row for path, row in paths.items()}
    folders = [Path(FEW.value or "").parent]
    if hasattr(source, "root"):  # PATH of folder:PATH, if its splits are folders below it
        folders.append(source.root.parent)
    found: dict[int, str] = {}
    for path, label in table.items():
        row = names.get(path)
        for folder in folders:
            if row is None:
                row = real.get(os.path.realpath(folder / path))
        if row is None:
            raise DataError(
                f"--few={FEW.value} names {image_features.printable(path)!r}, which is no image of "
                f"{source.name}; its first is {source.names()[0]!r}."
            )
        if found.setdefault(row, label) != label:
            raise DataError(
                f"--few={FEW.value} names {image_features.printable(path)!r} twice, with two "
                "labels: give each image one."
            )
    return found


if __name__ == "__main__":
    app.run(main, "RUN")
