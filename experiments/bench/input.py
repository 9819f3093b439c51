"""Pairs of views per second on the host: our input, other loaders, and decoding alone."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from byol_jax import data as data_lib
from byol_jax.data import on_device
from byol_jax.data._tensorflow import tf
from byol_jax.errors import UserError
from experiments.bench import measure, peers, photographs
from experiments.bench.report import Column, Report, Table

Batches = Callable[[int], Iterator[object]]  # number of batches -> batches of pairs

PHOTOGRAPHS, SMALL = (224, 64), (32, 256)  # size of a view, images in a batch
SYNTHETIC = 64  # photographs, if --data names none
SMALL_IMAGES = 50_000  # as in CIFAR-10
TURN_SECONDS = 1.5
CROP = data_lib.Crop(fit="retry")  # as the peers draw boxes
UNTIMED, FEWEST_BATCHES = 8, 8  # per turn
OURS, DECODE = "byol_jax", "JPEG decode alone"
ON_DEVICE = "byol_jax, images and crops on the device"


def run(against: Sequence[str], data: str, seconds: float) -> Report:
    """Measures pairs from photographs and from memory.

    Args:
      against: names in `peers.LOADERS`; empty for all.
      data: folder:PATH, or "" for synthetic photographs.
      seconds: approximate time for each of the two tables.
    """
    modules, notes = peers.available(against, peers.LOADERS)
    if "torchvision" in modules and modules["torchvision"].NOTE:
        notes.append(modules["torchvision"].NOTE)
    report = Report("input", notes=notes)
    with tempfile.TemporaryDirectory() as folder:
        if not data:
            photographs.draw(Path(folder), SYNTHETIC)
        source = data_lib.open_source(data or f"folder:{folder}", "train")
        what = f"{source.num_examples} {'photographs' if data else 'synthetic photographs'}"
        size, batch_size = PHOTOGRAPHS
        paths = jpegs(source)
        loaders = {OURS: ours(source, size, batch_size), DECODE: decode(paths, batch_size)}
        loaders |= others(modules, paths, size, batch_size)
        title = f"Pairs at {size} pixels from {what}"
        report.tables.append(table(title, loaders, batch_size, seconds))
    size, batch_size = SMALL
    images = np.random.default_rng(0).integers(0, 256, (SMALL_IMAGES, size, size, 3), np.uint8)
    source = data_lib.from_arrays(images)
    loaders = {
        OURS: ours(source, size, batch_size),
        ON_DEVICE: on_the_device(source, size, batch_size),
    }
    loaders |= others(modules, images, size, batch_size)
    title = f"Pairs at {size} pixels from {SMALL_IMAGES:,} images in memory"
    report.tables.append(table(title, loaders, batch_size, seconds))
    return report


def jpegs(source: data_lib.Source) -> list[str]:
    """The paths of a folder of JPEG files.

    Raises:
      UserError: not a folder, or other files too, which the peers cannot read.
    """
    if not source.name.startswith("folder:"):
        raise UserError(f"--data={source.name}: the bench reads image files; name a folder:PATH.")
    paths = [source.describe(index) for index in range(source.num_examples)]
    for path in paths:
        if not path.lower().endswith((".jpg", ".jpeg")):
            raise UserError(f"{path} is not a JPEG file: the bench needs a folder of JPEG files.")
    return paths


def ours(source: data_lib.Source, size: int, batch_size: int) -> Batches:
    """Our batches, as in training, with the boxes of the peers."""
    if source.num_examples < batch_size:
        raise UserError(f"{source.name} has fewer than {batch_size} images.")
    return lambda count: data_lib.train_batches(
        source, batch_size=batch_size, image_size=size, seed=0, num_steps=count, crop=CROP
    )


def on_the_device(source: data_lib.ArraySource, size: int, batch_size: int) -> Batches:
    """Our batches with images and crops on the device (config.data.placement=device)."""

    def batches(count: int) -> Iterator[object]:
        made = on_device.train_batches(
            source, batch_size=batch_size, image_size=size, seed=0, num_steps=count, crop=CROP
        )
        yield from map(jax.block_until_ready, made)

    return batches


def decode(paths: Sequence[str], batch_size: int) -> Batches:
    """The limit: reading and decoding each file once, on all cores, and nothing else."""
    files = tf.constant(list(paths))

    def batches(count: int) -> Iterator[object]:
        dataset = tf.data.Dataset.range(len(paths)).shuffle(len(paths)).repeat()
        dataset = dataset.take(count * batch_size).map(
            # One value of each image, because the sizes differ.
            lambda i: tf.io.decode_jpeg(tf.io.read_file(files[i]), channels=3)[0, 0, 0],
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    return batches


def others(
    modules: dict[str, object], images: Sequence[str] | np.ndarray, size: int, batch_size: int
) -> dict[str, Batches]:
    """The peers' batches, by name."""
    loaders: dict[str, Batches] = {}
    if "per_view" in modules:
        per_view = modules["per_view"].batches
        loaders[label("per_view")] = lambda n: per_view(images, size, batch_size, n)
    if "torchvision" in modules:
        pil = modules["torchvision"]
        for what, text in (("crops", "crops and flips"), ("all", "all augmentations")):
            loader = pil.Loader(images, pil.Each(*pil.views(what, size)), batch_size)
            loaders[f"{label('torchvision')}: {text}"] = loader.batches
    if "lightly" in modules:
        loader = modules["lightly"].loader(images, size, batch_size)
        loaders[label("lightly")] = loader.batches
    return loaders


def label(peer: str) -> str:
    """The description of a loader."""
    return peers.LOADERS[peer][1]


def make_turn(batches: Batches, batch_size: int, seconds: float = TURN_SECONDS) -> measure.Turn:
    """A turn that reads batches for some seconds and returns the seconds per pair.

    Loaders prefetch, so a turn reads to the end: no loader works during another's turn. The first
    batches are not timed: a loader starts its graph or workers, and tf.data tunes its parallelism.
    """

    def read(count: int) -> float:
        iterator = iter(batches(UNTIMED + count))
        for _ in range(UNTIMED):
            next(iterator)
        start = time.perf_counter()
        for _ in iterator:
            pass
        return (time.perf_counter() - start) / (count * batch_size)

    per_batch = read(FEWEST_BATCHES) * batch_size
    # An even number, so that two workers finish together.
    count = 2 * max(FEWEST_BATCHES // 2, measure.times_for(seconds / 2, per_batch))
    return lambda: read(count)


def table(title: str, loaders: dict[str, Batches], batch_size: int, seconds: float) -> Table:
    """Pairs per second of each loader, and our speed-up over it."""
    turns = {name: make_turn(batches, batch_size) for name, batches in loaders.items()}
    took = measure.in_turn(turns, seconds=seconds)
    result = Table(
        title,
        [
            Column("loader", "text"),
            Column("pairs/s", "number"),
            Column("speed-up of byol_jax (x)", "ratio"),
            *([Column("share of decode alone", "share")] if DECODE in took else []),
        ],
    )
    for name, each in took.items():
        ratio = None if name in (OURS, ON_DEVICE, DECODE) else measure.ratios(each, took[OURS])
        shares = []
        if DECODE in took:
            shares = [None if name == DECODE else measure.ratios(took[DECODE], each)]
        result.add(name, measure.rates(each, 1), ratio, *shares)
    return result
