"""A data set that lives on the devices: its views are cut there, and no step sends anything.

For images of one size that fit into the memory of a device (CIFAR-10 takes 150 MB). The order of an
epoch is drawn on the device too, so that the host only says "go"; TensorFlow is not needed. All
randomness is a function of (seed, epoch, position in the epoch's order), as on the host, whose
draws are others of the same distribution.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from byol_jax import data, parallel
from byol_jax.augment import crops
from byol_jax.byol import Batch
from byol_jax.errors import UserError

# In bytes, and not a share of the device's memory: the same run is the same on every machine.
AUTO_LIMIT = 2**30
# What a run's key is folded with, beyond any step: the keys of steps begin there too.
ORDERS, CROPS = 2**32 - 1, 2**32 - 2


class DeviceDataset(NamedTuple):
    """The data set, on every device."""

    images: jax.Array  # uint8 (N, H, W, C)
    labels: jax.Array | None  # int32 (N,)


class CropSpec(NamedTuple):
    """Which views a run takes of it."""

    batch_size: int  # of all devices
    epoch_steps: int
    size: int  # height and width S of a view
    crop: crops.Crop
    seed: int


def placement(config: ConfigDict, source: data.Source) -> str:
    """Where the views of a source are cut, "host" or "device", as `config.data.placement` asks.

    "auto" is the device for arrays of up to AUTO_LIMIT bytes: it depends on the data alone.

    Raises:
      UserError: they cannot be cut where it asks.
    """
    wanted, in_memory = config.data.placement, isinstance(source, data.ArraySource)
    if wanted == "auto":
        wanted = "device" if in_memory and source.images.nbytes <= AUTO_LIMIT else "host"
    if wanted == "host":
        return wanted
    if not in_memory:
        raise UserError(
            "config.data.placement=device is for images of one size that are in memory (npz:, "
            "embedded, arrays, or a TFDS data set of up to 1 GB), not for "
            f"{source.name}: set it to host, or to auto."
        )
    if config.data.service:
        raise UserError(
            f"The views of {source.name} are cut on the device, where config.data.service has "
            "nothing to do: leave it out, or set config.data.placement=host."
        )
    if not fits(source):
        raise UserError(
            f"{source.name} takes {source.images.nbytes / 1e9:.1f} GB and a device has "
            f"{device_memory() / 1e9:.1f}: set config.data.placement=host."
        )
    return wanted


def fits(source: data.ArraySource) -> bool:
    """Whether a device could hold the images; there is more that it must hold."""
    return source.images.nbytes < device_memory()


def device_memory() -> float:
    """Bytes of memory that a local device has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    # A CPU: virtual devices share what the machine has.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()


def train_batches(
    source: data.ArraySource,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    crop: crops.Crop | None = None,
    accum_steps: int = 1,
) -> Iterator[Batch]:
    """Pairs of random views of every example of each epoch, in random order, made on the devices.

    Args:
      source: the images.
      batch_size: examples in the global batch.
      image_size: height and width S of a view.
      seed: all randomness follows from it.
      num_steps: steps of the whole run.
      start_step: the first step to yield.
      crop: the distribution of the boxes; the paper's by default.
      accum_steps: micro-batches of an update.

    Yields:
      Steps start_step to num_steps - 1, placed as by `parallel.device_put_batch`.

    Raises:
      UserError: at the call, if an argument is out of its range.
    """
    crop = crops.Crop() if crop is None else crop
    crops.check_crop(crop)
    crops.check_size(image_size)
    epoch_steps = data.steps_per_epoch(source, batch_size)
    cut = CropSpec(batch_size, epoch_steps, image_size, crop, seed)
    labels = None if source.num_classes is None else source.labels
    return _batches(cut, DeviceDataset(source.images, labels), accum_steps, start_step, num_steps)


def _batches(cut, residence, accum_steps, start_step, num_steps):
    residence, step = parallel.replicate((residence, jnp.int32(start_step)))
    count = len(residence.images)
    order_of = jax.jit(lambda step: order(cut.seed, step // cut.epoch_steps, count))
    make = parallel.sharded_batch_fn(partial(batch, cut), cut.batch_size, accum_steps)
    for number in range(start_step, num_steps):
        if number == start_step or number % cut.epoch_steps == 0:
            places = order_of(step)
        made, step = make((residence, places, step))
        yield made


def order(seed: int, epoch: jax.Array, count: int) -> jax.Array:
    """The places of `count` examples in the order of an epoch, int32 (count,)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), ORDERS), epoch)
    return jax.random.permutation(key, count)


def batch(
    cut: CropSpec, rows: jax.Array, data: tuple[DeviceDataset, jax.Array, jax.Array]
) -> tuple[Batch, jax.Array]:
    """Some rows of the batch of a step, and the number of the next step.

    Args:
      cut: of the run.
      rows: int32 (n,): which rows of the global batch.
      data: the data set, the order of the step's epoch, and the step, int32 ().
    """
    residence, places, step = data
    position = step % cut.epoch_steps * cut.batch_size + rows
    example = places[position]
    key = jax.random.fold_in(jax.random.key(cut.seed), CROPS)
    key = jax.random.fold_in(key, step // cut.epoch_steps)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(position)
    views = jax.vmap(lambda image, key: crops.random_views(image, cut.size, cut.crop, key))(
        residence.images[example], keys
    )
    labels = None if residence.labels is None else residence.labels[example]
    return Batch(views, labels, rows), step + 1
