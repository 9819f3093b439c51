"""Devices, of one process or many: the only file that says pmap.

The state is replicated and whole on every device (no leading device axis); batches are split by
rows, first among processes, then among the devices of each. pmap's `out_axes=None` trusts that a
value is the same on every replica, which is why `byol.update` averages all it returns.
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
    """Raises UserError where a micro-batch does not divide among the devices of all processes."""
    devices = jax.device_count()
    if devices != jax.local_device_count() * jax.process_count():
        raise UserError(
            f"process {jax.process_index()} has {jax.local_device_count()} of {devices} devices, "
            f"which are not shared equally by {jax.process_count()} processes: give each as many."
        )
    if batch_size % (devices * accum_steps):
        parts = f"{devices} devices"
        if accum_steps > 1:
            parts += f" and config.accum_steps={accum_steps} micro-batches"
        raise UserError(
            f"config.batch_size={batch_size} does not divide among {parts}: make it a multiple of "
            f"{devices * accum_steps}."
        )


def replicate(tree: Any) -> Any:
    """Puts the same arrays on every device of this process, as `update` returns its state.

    So nothing compiles twice. Every process has to come with the same.
    """
    return jax.device_put(tree, over_devices())


def over_devices(*axes: str | None) -> NamedSharding:
    """How arrays lie on this process's devices: replicated, or split on the axis called AXIS."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))


def local(tree: Any) -> Any:
    """This process's first copy of replicated arrays, without communication or a copy."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def across_processes(tree: Any) -> Any:
    """Replicated arrays as arrays over the devices of all processes; nothing is copied.

    Which is how all processes can save them together.
    """
    everywhere = NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_single_device_arrays(
            x.shape, everywhere, [shard.data for shard in x.addressable_shards]
        ),
        tree,
    )


def rows(batch_size: int, accum_steps: int) -> np.ndarray:
    """Which rows of every global batch this process feeds to its devices, ascending.

    Its equal part of the first micro-batch, then of the second, and so on: which examples make a
    micro-batch does not depend on the number of processes.
    """
    parts = np.arange(batch_size).reshape(accum_steps, jax.process_count(), -1)
    return parts[:, jax.process_index()].reshape(-1)


def split(batch: byol.Batch, accum_steps: int = 1) -> byol.Batch:
    """Rows of this process -> (its devices, rows of a device), in place of the row axis.

    A device gets its share of the first micro-batch, then of the second, and so on: which examples
    make a micro-batch does not depend on the number of devices.
    """
    return byol.Batch(
        *(
            None if x is None else split_rows(x, axis, accum_steps)
            for axis, x in zip(ROWS, batch, strict=True)
        )
    )


def split_rows(x: np.ndarray, axis: int, accum_steps: int) -> np.ndarray:
    """The same for one array, whose rows are on `axis`."""
    devices = jax.local_device_count()
    before, rows, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    x = x.reshape(*before, accum_steps, devices, rows // (accum_steps * devices), *after)
    return x.swapaxes(axis, axis + 1).reshape(*before, devices, rows // devices, *after)


def place(batch: byol.Batch, accum_steps: int = 1) -> byol.Batch:
    """Starts to send the rows of this process to its devices, split as above.

    Returns at once; `update` and `inspect_features` take what it returns.
    """
    parts = zip(ROWS, split(batch, accum_steps), strict=True)
    return byol.Batch(
        *(
            None if x is None else jax.device_put(x, over_devices(*[None] * axis, AXIS))
            for axis, x in parts
        )
    )


def making(
    of_rows: Callable[[jax.Array, Any], tuple[byol.Batch, Any]], batch_size: int, accum_steps: int
) -> Callable[[Any], tuple[byol.Batch, Any]]:
    """Batches that are made on the devices, each making its own rows.

    Args:
      of_rows: (rows of the global batch, int32 (n,), and something replicated) -> these rows of a
        batch, and something replicated.
      batch_size: rows of the global batch.
      accum_steps: micro-batches of an update.

    Returns:
      `make(replicated)` -> a batch as `place` returns it, and what else `of_rows` returns.
    """
    mapped = jax.pmap(of_rows, axis_name=AXIS, in_axes=(0, None), out_axes=(ROWS, None))
    mine = rows(batch_size, accum_steps).astype(np.int32)
    mine = jax.device_put(split_rows(mine, 0, accum_steps), over_devices(AXIS))
    return lambda replicated: mapped(mine, replicated)


def first_rows(batch: byol.Batch, count: int) -> byol.Batch:
    """At most so many rows of a placed batch, of this process's first device, as NumPy arrays."""
    there = byol.Batch(
        *(None if x is None else np.asarray(x.addressable_shards[0].data) for x in batch)
    )
    return byol.Batch(
        there.views[:, 0, :count],
        None if there.labels is None else there.labels[0, :count],
        there.positions[0, :count],
    )


def update(
    learner: byol.Learner,
    of_replica: Callable[..., tuple[byol.State, dict[str, jax.Array]]] = byol.update,
) -> Callable[..., tuple[byol.State, dict[str, jax.Array]]]:
    """`byol.update`, or another function like it, over all devices of all processes.

    Returns:
      `update(state, batch, stop=False)`: a replicated state, a placed batch, and whether this
      process wants to stop -> state and metrics, both replicated; the metric 'stop' is above 0 if
      any process wants to. The state is donated: the one passed in cannot be used again.
    """

    def voting(state: byol.State, batch: byol.Batch, stop: jax.Array) -> tuple[byol.State, dict]:
        state, metrics = of_replica(learner, state, batch)
        return state, metrics | {"stop": jax.lax.pmax(stop, AXIS)}

    mapped = jax.pmap(
        voting, axis_name=AXIS, in_axes=(None, ROWS, 0), out_axes=None, donate_argnums=0
    )
    # With two updates on the way, those of XLA's CPU backend can wait for each other without end.
    one_at_a_time = jax.process_count() > 1 and jax.default_backend() == "cpu"
    votes = {  # on the devices already, so that an update sends nothing
        stop: jax.device_put(
            np.full(jax.local_device_count(), stop, np.float32), over_devices(AXIS)
        )
        for stop in (False, True)
    }

    def update(state: byol.State, batch: byol.Batch, stop: bool = False) -> tuple[byol.State, dict]:
        state, metrics = mapped(state, batch, votes[stop])
        if one_at_a_time:
            jax.block_until_ready(metrics)
        return state, metrics

    return update


def inspect_features(
    learner: byol.Learner,
) -> Callable[[byol.State, byol.Batch], tuple[np.ndarray, np.ndarray]]:
    """`byol.inspect_features` over all devices; every process gets the whole first micro-batch."""

    def everyones(state: byol.State, batch: byol.Batch) -> tuple[jax.Array, jax.Array]:
        return jax.lax.all_gather(byol.inspect_features(learner, state, batch), AXIS, tiled=True)

    mapped = jax.pmap(everyones, axis_name=AXIS, in_axes=(None, ROWS), out_axes=None)

    def inspect(state: byol.State, batch: byol.Batch) -> tuple[np.ndarray, np.ndarray]:
        return jax.tree.map(np.asarray, local(mapped(state, batch)))

    return inspect


def embedder(learner: byol.Learner) -> Callable[[byol.State, np.ndarray, int], np.ndarray]:
    """`byol.embed` over the devices of this process, for any number of images.

    Returns:
      `embed(state, images, batch_size)`: uint8 (n, h, w, channels) -> float32 (n, features).
      Batches are padded to the given size, so that all are of one shape and compile once.
    """
    devices = jax.local_device_count()
    mapped = jax.pmap(
        lambda state, images: byol.embed(learner, state, images),
        in_axes=(None, 0),
        out_axes=0,
        devices=jax.local_devices(),
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
