"""Pairs of views a second on the host: ours, other loaders', and what decoding alone allows."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from byol_jax import data
from byol_jax.data import on_device
from byol_jax.data._tensorflow import tf
from byol_jax.errors import UserError
from experiments.bench import measure, peers, photographs
from experiments.bench.report import Column, Report, Table

Batches = Callable[[int], Iterator[object]]  # how many batches of pairs -> these

PHOTOGRAPHS, SMALL = (224, 64), (32, 256)  # size of a view, images in a batch
DRAWN = 64  # photographs, where none are named
SMALL_IMAGES = 50_000  # as many as CIFAR-10 has
TURN_SECONDS = 1.5
UNCOUNTED, FEWEST_BATCHES = 8, 8  # of a turn
OURS, DECODE = "byol_jax", "JPEG decode alone"
RESIDENT = "byol_jax, images and crops on the device"


def run(against: Sequence[str], data: str, seconds: float) -> Report:
    """Measures pairs from photographs and from memory.

    Args:
      against: names of `peers.LOADERS`; empty for all.
      data: folder:PATH, or "" for photographs that are drawn.
      seconds: for the rounds of each of the two tables, about.
    """
    modules, notes = peers.available(against, peers.LOADERS)
    if "torchvision" in modules and modules["torchvision"].NOTE:
        notes.append(modules["torchvision"].NOTE)
    report = Report("input", notes=notes)
    with tempfile.TemporaryDirectory() as folder:
        if not data:
            photographs.draw(Path(folder), DRAWN)
        source = data.open_source(data or f"folder:{folder}", "train")
        what = f"{source.num_examples} {'photographs' if data else 'drawn photographs'}"
        size, batch_size = PHOTOGRAPHS
        paths = jpegs(source)
        loaders = {OURS: ours(source, size, batch_size), DECODE: decode(paths, batch_size)}
        loaders |= others(modules, paths, size, batch_size)
        title = f"Pairs at {size} pixels from {what}"
        report.tables.append(table(title, loaders, batch_size, seconds))
    size, batch_size = SMALL
    images = np.random.default_rng(0).integers(0, 256, (SMALL_IMAGES, size, size, 3), np.uint8)
    source = data.from_arrays(images)
    loaders = {
        OURS: ours(source, size, batch_size),
        RESIDENT: resident(source, size, batch_size),
    }
    loaders |= others(modules, images, size, batch_size)
    title = f"Pairs at {size} pixels from {SMALL_IMAGES:,} images in memory"
    report.tables.append(table(title, loaders, batch_size, seconds))
    return report


def jpegs(source: data.Source) -> list[str]:
    """The paths of a folder's images, all JPEG.

    Raises:
      UserError: not a folder, or other files too, which the peers cannot read.
    """
    if not source.name.startswith("folder:"):
        raise UserError(f"--data={source.name}: the bench reads image files; name a folder:PATH.")
    paths = [source.describe(place) for place in range(source.num_examples)]
    for path in paths:
        if not path.lower().endswith((".jpg", ".jpeg")):
            raise UserError(f"{path} is no JPEG: the bench needs a folder of these alone.")
    return paths


def ours(source: data.Source, size: int, batch_size: int) -> Batches:
    """Our own batches, as training reads them."""
    if source.num_examples < batch_size:
        raise UserError(f"{source.name} has fewer than {batch_size} images; name more.")
    return lambda count: data.train_batches(
        source, batch_size=batch_size, image_size=size, seed=0, num_steps=count
    )


def resident(source: data.ArraySource, size: int, batch_size: int) -> Batches:
    """Our batches where the images live on the device (config.data.placement=device)."""

    def batches(count: int) -> Iterator[object]:
        made = on_device.train_batches(
            source, batch_size=batch_size, image_size=size, seed=0, num_steps=count
        )
        yield from map(jax.block_until_ready, made)

    return batches


def decode(paths: Sequence[str], batch_size: int) -> Batches:
    """The bound: reading and decoding each file once, on all cores, and nothing else."""
    files = tf.constant(list(paths))

    def batches(count: int) -> Iterator[object]:
        dataset = tf.data.Dataset.range(len(paths)).shuffle(len(paths)).repeat()
        dataset = dataset.take(count * batch_size).map(
            # One value stands for the image, as the sizes differ.
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
        loaders[name_of("per_view")] = lambda n: per_view(images, size, batch_size, n)
    if "torchvision" in modules:
        pil = modules["torchvision"]
        for what, words in (("crops", "crops and flips"), ("all", "whole policy")):
            loader = pil.Loader(images, pil.Each(*pil.views(what, size)), batch_size)
            loaders[f"{name_of('torchvision')}: {words}"] = loader.batches
    if "lightly" in modules:
        loader = modules["lightly"].loader(images, size, batch_size)
        loaders[name_of("lightly")] = loader.batches
    return loaders


def name_of(peer: str) -> str:
    """A peer in words."""
    return peers.LOADERS[peer][1]


def turn_of(batches: Batches, batch_size: int, seconds: float = TURN_SECONDS) -> measure.Turn:
    """A turn of so many batches that they take some seconds; returns the seconds of one pair.

    A loader runs ahead of its reader, so a turn reads until nothing is left: none works behind
    another's back. The first UNCOUNTED batches are not timed: a loader has to start its graph or
    its workers, and tf.data to find how much to do at once.
    """

    def read(count: int) -> float:
        iterator = iter(batches(UNCOUNTED + count))
        for _ in range(UNCOUNTED):
            next(iterator)
        start = time.perf_counter()
        for _ in iterator:
            pass
        return (time.perf_counter() - start) / (count * batch_size)

    of_batch = read(FEWEST_BATCHES) * batch_size
    # An even number, so that two workers end together.
    count = 2 * max(FEWEST_BATCHES // 2, measure.times_for(seconds / 2, of_batch))
    return lambda: read(count)


def table(title: str, loaders: dict[str, Batches], batch_size: int, seconds: float) -> Table:
    """Pairs a second of each loader, and how they compare with ours."""
    turns = {name: turn_of(batches, batch_size) for name, batches in loaders.items()}
    took = measure.in_turn(turns, seconds=seconds)
    result = Table(
        title,
        [
            Column("loader", "text"),
            Column("pairs/s", "number"),
            Column("byol_jax is so many times as fast", "ratio"),
            *([Column("share of decode alone", "share")] if DECODE in took else []),
        ],
    )
    for name, each in took.items():
        ratio = None if name in (OURS, RESIDENT, DECODE) else measure.ratios(each, took[OURS])
        shares = []
        if DECODE in took:
            shares = [None if name == DECODE else measure.ratios(took[DECODE], each)]
        result.add(name, measure.rates(each, 1), ratio, *shares)
    return result
