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
    return jax.device_put(tree, local_sharding())


def local_sharding(*axes: str | None) -> NamedSharding:
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


def split(tree: Any, accum_steps: int = 1) -> Any:
    """This process's rows, first axis of every leaf -> (its devices, rows of a device).

    A device gets its share of the first micro-batch, then of the second, and so on: which examples
    make a micro-batch does not depend on the number of devices.
    """
    devices = jax.local_device_count()

    def split_rows(x: np.ndarray) -> np.ndarray:
        rows, *rest = x.shape
        x = x.reshape(accum_steps, devices, rows // (accum_steps * devices), *rest)
        return x.swapaxes(0, 1).reshape(devices, rows // devices, *rest)

    return jax.tree.map(split_rows, tree)


def device_put_batch(batch: byol.Batch, accum_steps: int = 1) -> byol.Batch:
    """Starts to send the rows of this process to its devices, split as above.

    Returns at once; `update` and `gather_rows` take what it returns.
    """
    return jax.device_put(split(batch, accum_steps), local_sharding(AXIS))


def sharded_batch_fn(
    of_rows: Callable[[jax.Array, Any], tuple[byol.Batch, Any]], batch_size: int, accum_steps: int
) -> Callable[[Any], tuple[byol.Batch, Any]]:
    """Batches that are made on the devices, each making its own rows.

    Args:
      of_rows: (rows of the global batch, int32 (n,), and something replicated) -> these rows of a
        batch, and something replicated.
      batch_size: rows of the global batch.
      accum_steps: micro-batches of an update.

    Returns:
      `make(replicated)` -> a batch as `device_put_batch` returns it, and what else `of_rows`
      returns.
    """
    mapped = jax.pmap(of_rows, axis_name=AXIS, in_axes=(0, None), out_axes=(0, None))
    mine = rows(batch_size, accum_steps).astype(np.int32)
    mine = jax.device_put(split(mine, accum_steps), local_sharding(AXIS))
    return lambda replicated: mapped(mine, replicated)


def first_rows(batch: byol.Batch, count: int) -> byol.Batch:
    """At most `count` rows of a batch on the devices, of the first local one, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0, :count], batch)


def update(learner: byol.Learner, step_fn: Callable[..., tuple] = byol.update) -> Callable:
    """`byol.update`, or another function like it, over all devices of all processes.

    Args:
      learner: what to train.
      step_fn: (learner, state, batch) -> state, metrics, and any further signals; whatever it
        returns must be the same on every replica.

    Returns:
      `update(state, batch, stop=False)`: a replicated state, a batch on the devices, and whether
      this process wants to stop -> state, metrics and signals, all replicated. The first signal is
      above 0 if any process wants to stop; the others are those of `step_fn`. The state is donated:
      the one passed in cannot be used again.
    """

    def replica_step(state: byol.State, batch: byol.Batch, stop: jax.Array) -> tuple:
        state, metrics, *signals = step_fn(learner, state, batch)
        return state, metrics, (jax.lax.pmax(stop, AXIS), *signals)

    mapped = jax.pmap(
        replica_step, axis_name=AXIS, in_axes=(None, 0, 0), out_axes=None, donate_argnums=0
    )
    # With two updates in flight, those of XLA's CPU backend can wait for each other for ever.
    one_at_a_time = jax.process_count() > 1 and jax.default_backend() == "cpu"
    votes = {  # on the devices already, so that an update sends nothing
        stop: jax.device_put(
            np.full(jax.local_device_count(), stop, np.float32), local_sharding(AXIS)
        )
        for stop in (False, True)
    }

    def update(state: byol.State, batch: byol.Batch, stop: bool = False) -> tuple:
        outputs = mapped(state, batch, votes[stop])
        if one_at_a_time:
            jax.block_until_ready(outputs)
        return outputs

    return update


def gather_rows(
    rows_fn: Callable[[byol.State, byol.Batch], Any],
) -> Callable[[byol.State, byol.Batch], Any]:
    """A function of replicated state and batch, over all devices of all processes.

    Args:
      rows_fn: (state, rows of one replica) -> a tree of arrays with a row axis first.

    Returns:
      A function of the same arguments -> NumPy arrays with the rows of all replicas; every process
      gets all.
    """

    def gathered(state: byol.State, batch: byol.Batch) -> Any:
        return jax.lax.all_gather(rows_fn(state, batch), AXIS, tiled=True)

    mapped = jax.pmap(gathered, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
    return lambda state, batch: jax.tree.map(np.asarray, local(mapped(state, batch)))


def embedder(learner: byol.Learner) -> Callable[[byol.State], Callable[[Any, int], np.ndarray]]:
    """`byol.embed` over the devices of this process, for any number of examples.

    Returns:
      `embed_with(state)` -> `embed(examples, batch_size)`: a tree of arrays with n rows -> float32
      (n, features). The state is put on every device once, by `embed_with`. Batches are padded to
      the given size, so that all are of one shape and compile once.
    """
    devices = jax.local_device_count()
    mapped = jax.pmap(
        lambda state, examples: byol.embed(learner, state, examples),
        in_axes=(None, 0),
        out_axes=0,
        devices=jax.local_devices(),
    )

    def embed_with(state: byol.State) -> Callable[[Any, int], np.ndarray]:
        # Only what an embedding depends on.
        state = state._replace(target_params=(), target_stats=(), opt_state=())
        state = replicate(state)

        def embed(examples: Any, batch_size: int) -> np.ndarray:
            rows = -(-batch_size // devices)
            count = len(jax.tree.leaves(examples)[0])

            def chunk(x: np.ndarray, start: int) -> np.ndarray:
                x = x[start : start + rows * devices]
                padding = [(0, rows * devices - len(x))] + [(0, 0)] * (x.ndim - 1)
                return np.pad(x, padding).reshape(devices, rows, *x.shape[1:])

            features = [
                np.asarray(mapped(state, jax.tree.map(lambda x: chunk(x, start), examples)))  # noqa: B023
                for start in range(0, count, rows * devices)
            ]
            return np.concatenate(features).reshape(-1, features[0].shape[-1])[:count]

        return embed

    return embed_with
