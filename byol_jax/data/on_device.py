"""A data set in device memory: its crops are computed on the devices, and no step transfers data.

For images of one size that fit into the memory of a device (CIFAR-10 takes 150 MB). The order of an
epoch is drawn on the device too, so the host only dispatches; TensorFlow is not needed. All
randomness is a function of (seed, epoch, position in the epoch's order), as on the host, whose
draws differ but have the same distribution.
"""

import functools
import os
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import parallel
from byol_jax.augment import crops
from byol_jax.byol import Batch, Tree
from byol_jax.data.arrays import ArraySource
from byol_jax.data.source import ImageSource, steps_per_epoch
from byol_jax.errors import ConfigError

# In bytes rather than relative to the device's memory, so that a run is the same on every machine.
AUTO_LIMIT = 2**30
# What the key of a run is folded with; steps are smaller, and fold the same key.
ORDERS, CROPS, LOCAL_CROPS = 2**32 - 1, 2**32 - 2, 2**32 - 3


def placement(config: ConfigDict, source: ImageSource) -> str:
    """Where the crops of a source are computed, "host" or "device", by `config.data.placement`.

    "auto" means the device for arrays of up to AUTO_LIMIT bytes: it depends on the data alone.

    Raises:
      ConfigError: they cannot be computed there.
    """
    wanted, in_memory = config.data.placement, isinstance(source, ArraySource)
    if wanted == "auto":
        wanted = "device" if in_memory and source.images.nbytes <= AUTO_LIMIT else "host"
    if wanted == "host":
        return wanted
    if not in_memory:
        raise ConfigError(
            "config.data.placement=device is for images of one size that are in memory (npz:, "
            "embedded, arrays, or a TFDS data set of up to 1 GB), not for "
            f"{source.name}: set it to host, or to auto."
        )
    if config.data.service:
        raise ConfigError(
            f"The crops of {source.name} are computed on the device, which needs no "
            "config.data.service: leave it out, or set config.data.placement=host."
        )
    if not fits(source):
        raise ConfigError(
            f"{source.name} takes {source.images.nbytes / 1e9:.1f} GB and a device has "
            f"{device_memory() / 1e9:.1f}: set config.data.placement=host."
        )
    return wanted


def fits(source: ArraySource) -> bool:
    """Whether a device could hold the images, without whatever else it has to hold."""
    return source.images.nbytes < device_memory()


def device_memory() -> float:
    """Bytes of memory that a local device has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    # A CPU: virtual devices share the memory of the machine.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()


def train_batches(
    source: ArraySource,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    crop: crops.Crop | None = None,
    local: crops.LocalViews | None = None,
    accum_steps: int = 1,
) -> Iterator[Batch]:
    """As `data.train_batches` of two views, on the devices, for `accum_steps` micro-batches.

    Yields:
      Steps start_step to num_steps - 1, sharded as by `parallel.device_put_batch`.

    Raises:
      ConfigError: at the call, if an argument is out of its range.
    """
    crop = crops.Crop() if crop is None else crop
    crops.check_crop(crop)
    crops.check_size(image_size)
    epoch_steps = steps_per_epoch(source, batch_size)

    def key_of(number: int, epoch: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.fold_in(jax.random.fold_in(key, epoch), position)

    def random_views(image: jax.Array, epoch: jax.Array, position: jax.Array) -> Tree:
        views = crops.random_views(image, image_size, crop, key_of(CROPS, epoch, position))
        if local is None:
            return views
        key = key_of(LOCAL_CROPS, epoch, position)
        return {
            "global": views,
            "local": crops.random_views(image, local.size, local.crop, key, local.count),
        }

    def make_rows(rows: jax.Array, inputs: tuple) -> tuple[Batch, jax.Array]:
        """These rows (int32 (n,)) of the batch of a step, and the next step."""
        images, labels, order, step = inputs
        epoch, step_of_epoch = step // epoch_steps, step % epoch_steps
        positions = step_of_epoch * batch_size + rows
        chosen = order[positions]
        views = jax.vmap(random_views, (0, None, 0))(images[chosen], epoch, positions)
        return Batch(views, None if labels is None else labels[chosen], rows), step + 1

    def batches() -> Iterator[Batch]:
        labels = None if source.num_classes is None else source.labels
        *dataset, step = parallel.replicate((source.images, labels, np.int32(start_step)))
        make = parallel.sharded_batch_fn(make_rows, batch_size, accum_steps)
        for number in range(start_step, num_steps):
            if number == start_step or number % epoch_steps == 0:
                order = _epoch_order(
                    step, seed=seed, epoch_steps=epoch_steps, num_examples=source.num_examples
                )
            batch, step = make((*dataset, order, step))
            yield batch

    return batches()


@functools.partial(jax.jit, static_argnames=("seed", "epoch_steps", "num_examples"))
def _epoch_order(step: jax.Array, *, seed: int, epoch_steps: int, num_examples: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), ORDERS)
    key = jax.random.fold_in(key, step // epoch_steps)
    return jax.random.permutation(key, num_examples)
