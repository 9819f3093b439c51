"""Devices: the only file that says pmap.

The state is replicated and whole on every device (no leading device axis); batches are split by
rows. pmap's `out_axes=None` trusts that a value is the same on every replica, which is why
`byol.update` averages all it returns.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from byol_jax import byol
from byol_jax.errors import UserError

AXIS = "batch"
# Where the rows are in each field of a batch.
ROWS = byol.Batch(views=1, labels=0, positions=0)


def check_devices(batch_size: int, accum_steps: int) -> None:
    """Raises UserError where a micro-batch does not divide among the devices of this host."""
    if jax.process_count() > 1:
        raise UserError("Training over several hosts is not supported yet: start one process.")
    devices = jax.device_count()
    if batch_size % (devices * accum_steps):
        parts = f"{devices} devices"
        if accum_steps > 1:
            parts += f" and config.accum_steps={accum_steps} micro-batches"
        raise UserError(
            f"config.batch_size={batch_size} does not divide among {parts}: make it a multiple of "
            f"{devices * accum_steps}."
        )


def replicate(state: byol.State) -> byol.State:
    """Puts the same state on every device, as `update` returns it (so nothing compiles twice)."""
    mesh = Mesh(np.asarray(jax.devices()), (AXIS,))
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def local(tree: Any) -> Any:
    """This host's first copy of replicated arrays, without communication or a copy."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def split(batch: byol.Batch, accum_steps: int = 1) -> byol.Batch:
    """Rows of this host -> (local devices, rows of a device), in place of the row axis.

    A device gets its share of the first micro-batch, then of the second, and so on: which examples
    make a micro-batch does not depend on the number of devices.
    """
    devices = jax.local_device_count()

    def split_axis(axis: int, x: np.ndarray | None) -> np.ndarray | None:
        if x is None:
            return None
        before, rows, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        x = x.reshape(*before, accum_steps, devices, rows // (accum_steps * devices), *after)
        return x.swapaxes(axis, axis + 1).reshape(*before, devices, rows // devices, *after)

    return byol.Batch(*(split_axis(axis, x) for axis, x in zip(ROWS, batch, strict=True)))


def update(learner: byol.Learner) -> Callable[[byol.State, byol.Batch], tuple[byol.State, dict]]:
    """`byol.update` over all devices: (replicated state, rows of this host) -> the same.

    The state is donated: the one passed in cannot be used again.
    """
    mapped = jax.pmap(
        lambda state, batch: byol.update(learner, state, batch),
        axis_name=AXIS,
        in_axes=(None, ROWS),
        out_axes=None,
        donate_argnums=0,
    )
    return lambda state, batch: mapped(state, split(batch, learner.accum_steps))


def inspect_features(
    learner: byol.Learner,
) -> Callable[[byol.State, byol.Batch], tuple[np.ndarray, np.ndarray]]:
    """`byol.inspect_features` over all devices: this host's rows of the first micro-batch."""
    mapped = jax.pmap(
        lambda state, batch: byol.inspect_features(learner, state, batch),
        axis_name=AXIS,
        in_axes=(None, ROWS),
        out_axes=0,
    )

    def rows(x: jax.Array) -> np.ndarray:
        return np.concatenate([np.asarray(shard.data)[0] for shard in x.addressable_shards])

    def inspect(state: byol.State, batch: byol.Batch) -> tuple[np.ndarray, np.ndarray]:
        embeddings, projections = mapped(state, split(batch, learner.accum_steps))
        return rows(embeddings), rows(projections)

    return inspect


def embedder(learner: byol.Learner) -> Callable[[byol.State, np.ndarray, int], np.ndarray]:
    """`byol.embed` over all devices, for any number of images.

    Returns:
      `embed(state, images, batch_size)`: uint8 (n, h, w, channels) -> float32 (n, features).
      Batches are padded to the given size, so that all are of one shape and compile once.
    """
    devices = jax.local_device_count()
    mapped = jax.pmap(
        lambda state, images: byol.embed(learner, state, images),
        in_axes=(None, 0),
        out_axes=0,
    )

    def embed(state: byol.State, images: np.ndarray, batch_size: int) -> np.ndarray:
        rows = -(-batch_size // devices)
        done = []
        for start in range(0, len(images), rows * devices):
            chunk = images[start : start + rows * devices]
            padding = [(0, rows * devices - len(chunk))] + [(0, 0)] * (images.ndim - 1)
            padded = np.pad(chunk, padding).reshape(devices, rows, *images.shape[1:])
            features = np.asarray(mapped(state, padded))
            done.append(features.reshape(-1, features.shape[-1])[: len(chunk)])
        return np.concatenate(done)

    return embed
