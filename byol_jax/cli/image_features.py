"""Features of all images of a source, computed once and kept in a file; and the flags for them.

`search`, `dedupe` and `label` share them. A file holds `features`, float32 (n, d); `images`, text
(n,): the name, size and time of change of each; and `encoder`, a digest of its weights and
settings. What is new or changed is computed, the rest is taken from the file.
"""

import csv
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from byol_jax.cli import import_flag
from byol_jax.errors import CheckpointError, ConfigError, DataError, UserError

if TYPE_CHECKING:  # they import JAX
    import numpy as np

    from byol_jax.data import ImageSource
    from byol_jax.runs.encoder import Encoder

BATCH_SIZE = 256

flags.disclaim_key_flags()  # --help of a command lists them as the command's own


class Flags(NamedTuple):
    """The flags of a command that has an encoder and images."""

    run: flags.FlagHolder
    step: flags.FlagHolder
    data: flags.FlagHolder
    data_dir: flags.FlagHolder
    split: flags.FlagHolder
    index: flags.FlagHolder
    on_decode_error: flags.FlagHolder
    modules: flags.FlagHolder


class Images(NamedTuple):
    """The images of a source that can be decoded."""

    source: "ImageSource"
    rows: "np.ndarray"  # int64 (n,), ascending: index in the source
    paths: list[str]  # of each; its index where the source is no folder
    features: "np.ndarray"  # float32 (n, d)


def define() -> Flags:
    """Defines the flags."""
    return Flags(
        run=flags.DEFINE_string("run", None, "RUN: the folder of a run or of an exported encoder."),
        step=flags.DEFINE_integer("step", None, "Checkpoint of the run; the newest by default."),
        data=flags.DEFINE_string(
            "data", None, "folder:PATH, npz:PATH or tfds:NAME; the training's by default."
        ),
        data_dir=flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data."),
        split=flags.DEFINE_string("split", None, "The split; the training's by default, or train."),
        index=flags.DEFINE_string(
            "index",
            None,
            "FILE.npz, which keeps the features (of dedupe: FILE-mirrored.npz); in RUN/embeddings "
            "by default.",
        ),
        on_decode_error=flags.DEFINE_enum(
            "on_decode_error",
            "error",
            ["error", "skip"],
            "Stop at an image that cannot be decoded, or leave it out.",
        ),
        modules=import_flag.define(),
    )


def open_encoder(given: Flags) -> "Encoder":
    """The encoder of the flags; raises UserError if it cannot be opened or is not for images."""
    import byol_jax
    from byol_jax.runs import kinds

    import_flag.apply(given.modules)
    encoder = byol_jax.load(given.run.value, given.step.value).encoder
    kinds.require_images(encoder.kind.name, "this command")
    return encoder


def open_source(given: Flags, encoder: "Encoder", split: str | None = None) -> "ImageSource":
    """The source of the flags, or another split of it; errors as of `open_data`."""
    source = open_data(
        encoder.config,
        given.run.value,
        given.data.value,
        split or given.split.value,
        given.data_dir.value,
    )
    for warning in source.warnings:
        print(warning)
    return source


def open_data(
    record: dict[str, Any], run: str, spec: str | None, split: str | None, data_dir: str | None
) -> "ImageSource":
    """The source that is named, or else the training data of an encoder.

    Args:
      record: the encoder's `config`.
      run: its folder, for the message.
      spec: as of `data.open_source`; None for the training data.
      split: None for that of the training, or "train" of other data.
      data_dir: where TFDS keeps its data; None for that of the training.

    Raises:
      ConfigError: nothing is named, and the encoder does not know its training data.
      DataError: the source cannot be opened.
    """
    from byol_jax import data
    from byol_jax.data.open import is_spec

    trained_on = (record["training"].get("config") or {}).get("data", {})
    known = trained_on.get("source")
    if spec is None and not (known and is_spec(known)):  # an array, or not recorded
        raise ConfigError(f"{run} does not name its training data: name images with --data.")
    spec = spec or known
    # The name of a split has no meaning for other data.
    default = trained_on.get("train_split") if spec == known else None
    return data.open_source(
        spec,
        split or default or "train",
        data_dir=data_dir or trained_on.get("dir") or None,
        channels=record["channels"],
        value_range=record.get("value_range", ()),
    )


def of_source(
    given: Flags, encoder: "Encoder", source: "ImageSource", mirrored: bool = False
) -> Images:
    """Features of the central view of every image, from the kept file where it has them.

    Args:
      given: the flags.
      encoder: computes what is new or changed.
      source: of any kind of images.
      mirrored: features are the mean of those of the image and of its mirror image, so that both
        have the same. They are kept in another file.

    Raises:
      CheckpointError: --index names a file that cannot be written, or something else.
      DataError: an image cannot be decoded, unless those are left out.
    """
    import numpy as np

    from byol_jax import data

    file = _file(given, source, mirrored)
    digest = _digest(encoder, mirrored)
    stamps = _stamps(source)
    # A data set without a fingerprint may change unnoticed, so its features are not kept.
    keeps = hasattr(source, "paths") or source.fingerprint() is not None
    kept = _read(file, digest, is_ours=given.index.value is None) if keeps else ([], None)
    known = {stamp: row for row, stamp in enumerate(kept[0])}
    if given.index.value is not None:
        _check_writable(file)
    new = np.array([i for i, stamp in enumerate(stamps) if stamp not in known], np.int64)
    found: dict[int, np.ndarray] = {}
    left_out = []
    if len(new):
        some = source
        if len(new) < len(stamps):
            some = data.subset(source, new, source.name)
        computed, is_there = embed(
            encoder, some, mirrored=mirrored, left_out=_report(given, left_out)
        )
        found = dict(zip(new[is_there].tolist(), computed, strict=True))
    rows = [i for i, stamp in enumerate(stamps) if stamp in known or i in found]
    if not rows:
        raise DataError(f"{source.name} holds no image that can be decoded: name another.")
    features = np.stack([found[i] if i in found else kept[1][known[stamps[i]]] for i in rows])
    for text in left_out:
        print(f"left out: {text}")
    print(
        f"{source.name}: {len(rows)} images, features of {len(rows) - len(found)} from {file}"
        if len(found) < len(rows)
        else f"{source.name}: {len(rows)} images, features computed"
    )
    if keeps and (len(found) or len(kept[0]) != len(rows)):
        _write(file, digest, [stamps[i] for i in rows], features, given.index.value is None)
    names = paths_of(source)
    return Images(source, np.array(rows), [names[i] for i in rows], features)


def embed(
    encoder: "Encoder",
    source: "ImageSource",
    *,
    crop: float = 1.0,
    mirrored: bool = False,
    left_out: Any = None,
) -> tuple["np.ndarray", "np.ndarray"]:
    """Features of central views, and which images they are of.

    Args:
      encoder: computes them.
      source: images with as many channels as the encoder takes.
      crop: the side of the view, as a share of that of the evaluation, in (0, 1].
      mirrored: as of `of_source`.
      left_out: called with the index and a message for what cannot be decoded; None: an error.

    Returns:
      Float32 (n, d), and int64 (n,): indices in the source, ascending. n may be 0.

    Raises:
      DataError: an image cannot be decoded, and `left_out` is None; or features are not finite.
    """
    import numpy as np
    import tqdm

    from byol_jax import data

    missing: list[int] = []

    def leave_out(index: int, message: str) -> None:
        missing.append(index)
        left_out(index, message)

    batches = data.eval_batches(
        source,
        batch_size=BATCH_SIZE,
        image_size=encoder.config["image_size"],
        crop_fraction=crop * encoder.crop_fraction,
        on_decode_error=leave_out if left_out else None,
    )
    parts = []
    with tqdm.tqdm(
        desc=source.name, total=source.num_examples, unit=" images", disable=None
    ) as shown:
        for images, _ in batches:
            features = encoder.embed(images, BATCH_SIZE)
            if mirrored:
                features = (features + encoder.embed(images[:, :, ::-1], BATCH_SIZE)) / 2
            parts.append(features)
            shown.update(len(images))
    features = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    if not np.isfinite(features).all():
        raise DataError(
            "features contain NaN or infinity: choose a checkpoint from before training diverged."
        )
    return features, np.delete(np.arange(source.num_examples), missing)


def paths_of(source: "ImageSource") -> list[str]:
    """The path of each image of a folder; of other sources the name."""
    return source.paths() if hasattr(source, "paths") else source.names()


def printable(path: str) -> str:
    """A path on one line."""
    from byol_jax.data import files

    return files.printable(path)


def write_csv(flag: str, path: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, complete or not at all; raises ConfigError, which names the flag."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    # Names of files need not be UTF-8.
    write_file(flag, path, text.getvalue().encode(errors="surrogateescape"))


def write_file(flag: str, path: str, content: bytes) -> None:
    """Writes a file, complete or not at all; raises ConfigError, which names the flag."""
    from byol_jax.runs import paths

    try:
        paths.write_atomically(paths.path(path), content)
    except CheckpointError as error:
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
        raise ConfigError(f"--{flag}={path} cannot be written: {reason}.") from error


def _report(given: Flags, left_out: list[str]) -> Any:
    if given.on_decode_error.value == "error":
        return None
    return lambda _, message: left_out.append(message)


def _file(given: Flags, source: "ImageSource", mirrored: bool) -> Any:
    """Where features are kept. Those with mirror images are others, so they have another file."""
    from byol_jax.runs import paths

    if given.index.value is not None:
        file = paths.path(given.index.value)
        return file.with_name(f"{file.stem}-mirrored{file.suffix}") if mirrored else file
    # Names are cut and may be equal otherwise.
    digest = hashlib.sha256(source.name.encode(errors="surrogateescape")).hexdigest()[:8]
    name = f"{paths.file_name(source.name)}-{digest}{'-mirrored' * mirrored}.npz"
    return paths.path(given.run.value) / "embeddings" / name


def _digest(encoder: "Encoder", mirrored: bool) -> str:
    """SHA-256, in hex, of what features depend on beside the images."""
    import jax
    import numpy as np

    settings = {key: value for key, value in encoder.config.items() if key != "training"}
    settings |= {"crop_fraction": encoder.crop_fraction, "mirrored": mirrored}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for leaf in jax.tree.leaves(encoder.variables):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _stamps(source: "ImageSource") -> list[str]:
    """A text for each image that changes if the image does."""
    if not hasattr(source, "paths"):
        of_all = f"{source.name}|{source.fingerprint()}"
        return [f"{of_all}|{name}" for name in source.names()]
    stamps = []
    for name, path in zip(source.names(), source.paths(), strict=True):
        try:
            found = os.stat(path)
            stamps.append(f"{name}|{found.st_size}|{found.st_mtime_ns}")
        except OSError:  # it is gone since the folder was listed: decoding says so
            stamps.append(f"{name}|")
    return stamps


def _read(file: Any, digest: str, is_ours: bool) -> tuple[list[str], Any]:
    """The stamps and features of a kept file; nothing if it is of another encoder.

    Raises CheckpointError for a file that the user named and that holds something else.
    """
    import numpy as np

    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            if str(archive["encoder"]) != digest:
                return [], None
            return archive["images"].tolist(), archive["features"]
    except FileNotFoundError:
        return [], None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if is_ours:  # damaged: it is written again
            return [], None
        raise CheckpointError(
            f"--index={file} is not a file of features that byol-jax has written: name another."
        ) from error


def _check_writable(file: Any) -> None:
    """Raises ConfigError before hours of computation, not after them."""
    from byol_jax.runs import paths

    if paths.is_local(file) and not os.access(file.parent, os.W_OK):
        raise ConfigError(f"--index={file} cannot be written: name a file in another folder.")


def _write(file: Any, digest: str, stamps: list[str], features: Any, is_ours: bool) -> None:
    """Keeps features; where nobody asked for that, a disk that cannot be written is no error."""
    import numpy as np

    from byol_jax.runs import paths

    content = io.BytesIO()
    np.savez(content, features=features, images=np.array(stamps), encoder=np.array(digest))
    try:
        with paths.translate_write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        paths.write_atomically(file, content.getbuffer())
    except UserError as error:
        if not is_ours:
            raise ConfigError(f"--index={file} cannot be written: name another file.") from error
        print(f"features are not kept: {file} cannot be written; --index=FILE.npz names another")


def check_files(paths: Sequence[str], what: str) -> None:
    """Raises DataError for the first path that is no file."""
    for path in paths:
        if not Path(path).is_file():
            problem = "is a folder" if Path(path).is_dir() else "does not exist"
            raise DataError(f"{printable(path)} {problem}: name {what}.")
