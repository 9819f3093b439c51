"""An update over the devices of one or many processes: the only file that uses pmap.

The state is replicated: every device holds a complete copy, without a leading device axis. Batches
are split by rows, first among processes, then among the devices of each. pmap does not check that
what it returns with `out_axes=None` is equal on all replicas, so `byol.update` averages it.

Mapped functions are kept for the last few learners, so that a second run of one process, such as in
a notebook, is not traced again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from byol_jax import byol
from byol_jax.errors import ConfigError

AXIS = "batch"
# What a process can request of all processes; the highest request of an update counts.
NO_REQUEST, SAVE, STOP = 0, 1, 2
KEPT = 4  # learners whose mapped functions are kept


def check_devices(batch_size: int, accum_steps: int) -> None:
    """Raises ConfigError unless a micro-batch divides among the devices of all processes."""
    devices = jax.device_count()
    if devices != jax.local_device_count() * jax.process_count():
        raise ConfigError(
            f"Process {jax.process_index()} has {jax.local_device_count()} of {devices} devices, "
            f"not an equal share among {jax.process_count()} processes: give each the same number."
        )
    if batch_size % (devices * accum_steps):
        parts = f"{devices} devices"
        if accum_steps > 1:
            parts += f" and config.accum_steps={accum_steps} micro-batches"
        other = ""
        if jax.default_backend() == "cpu":  # their number is chosen once for a process
            other = ", or start another process with another --cpu_devices"
        raise ConfigError(
            f"config.batch_size={batch_size} does not divide among {parts}: make it a multiple of "
            f"{devices * accum_steps}{other}."
        )


def replicate(tree: Any) -> Any:
    """Copies arrays to every device of this process, sharded as `update` returns its state.

    So `update` compiles once. Every process must pass the same values.
    """
    return jax.device_put(tree, local_sharding())


def local_sharding(*axes: str | None) -> NamedSharding:
    """A sharding over this process's devices: replicated, or split on the axis called AXIS."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))


def local(tree: Any) -> Any:
    """The first device's copy of replicated arrays; nothing is communicated or copied."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def rows(batch_size: int, accum_steps: int) -> np.ndarray:
    """The rows of every global batch that this process feeds to its devices, ascending.

    They are its equal share of the first micro-batch, then of the second, and so on: the examples
    of a micro-batch do not depend on the number of processes.
    """
    shares = np.arange(batch_size).reshape(accum_steps, jax.process_count(), -1)
    return shares[:, jax.process_index()].reshape(-1)


def split(tree: Any, accum_steps: int = 1) -> Any:
    """Splits this process's rows: (rows, ...) -> (devices, rows per device, ...) in every leaf.

    A device gets its share of the first micro-batch, then of the second, and so on: the examples
    of a micro-batch do not depend on the number of devices.
    """
    devices = jax.local_device_count()

    def split_rows(x: np.ndarray) -> np.ndarray:
        rows, *rest = x.shape
        x = x.reshape(accum_steps, devices, rows // (accum_steps * devices), *rest)
        return x.swapaxes(0, 1).reshape(devices, rows // devices, *rest)

    return jax.tree.map(split_rows, tree)


def device_put_batch(batch: byol.Batch, accum_steps: int = 1) -> byol.Batch:
    """Sends the rows of this process to its devices, split as by `split`, for `update`.

    Returns before the transfer is done.
    """
    return jax.device_put(split(batch, accum_steps), local_sharding(AXIS))


def sharded_batch_fn(
    make_rows: Callable[[jax.Array, Any], tuple[byol.Batch, Any]], batch_size: int, accum_steps: int
) -> Callable[[Any], tuple[byol.Batch, Any]]:
    """A function that makes batches on the devices, where each device makes its own rows.

    Args:
      make_rows: (int32 (n,), indices of rows of the global batch, and a replicated tree) -> these
        rows, and a replicated tree.
      batch_size: rows of the global batch.
      accum_steps: micro-batches of an update.

    Returns:
      A function: replicated tree -> a batch as from `device_put_batch`, and the replicated tree
      that `make_rows` returns.
    """
    mapped = jax.pmap(make_rows, axis_name=AXIS, in_axes=(0, None), out_axes=(0, None))
    mine = rows(batch_size, accum_steps).astype(np.int32)
    mine = jax.device_put(split(mine, accum_steps), local_sharding(AXIS))
    return lambda replicated: mapped(mine, replicated)


def first_rows(batch: byol.Batch, count: int) -> byol.Batch:
    """The first rows, at most `count`, of the first local device's part of a batch, in NumPy."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0, :count], batch)


@functools.lru_cache(KEPT)
def update(learner: byol.Learner, step_fn: Callable[..., tuple] = byol.update) -> Callable:
    """`byol.update`, or a function like it, over all devices of all processes.

    Args:
      learner: what to train.
      step_fn: (learner, state, batch) -> state, metrics, and further signals, if any; all that it
        returns must be equal on all replicas.

    Returns:
      `update(state, batch, request=NO_REQUEST)`: a replicated state, a batch on the devices, and
      what this process requests -> state, metrics and signals, all replicated. The first signal is
      the highest request of all processes; the others are those of `step_fn`. The state is donated:
      the one passed in cannot be used again.
    """

    def replica_step(state: byol.State, batch: byol.Batch, request: jax.Array) -> tuple:
        state, metrics, *signals = step_fn(learner, state, batch)
        return state, metrics, (jax.lax.pmax(request, AXIS), *signals)

    mapped = jax.pmap(
        replica_step, axis_name=AXIS, in_axes=(None, 0, 0), out_axes=None, donate_argnums=0
    )
    # On XLA's CPU backend, two updates in flight can deadlock.
    one_at_a_time = jax.process_count() > 1 and jax.default_backend() == "cpu"
    requests = {  # on the devices from the start, so that an update transfers nothing
        request: jax.device_put(
            np.full(jax.local_device_count(), request, np.float32), local_sharding(AXIS)
        )
        for request in (NO_REQUEST, SAVE, STOP)
    }

    def update(state: byol.State, batch: byol.Batch, request: int = NO_REQUEST) -> tuple:
        outputs = mapped(state, batch, requests[request])
        if one_at_a_time:
            jax.block_until_ready(outputs)
        return outputs

    return update


@functools.lru_cache(KEPT)
def gather_rows(
    learner: byol.Learner, rows_fn: Callable[[byol.Learner, byol.State, byol.Batch], Any]
) -> Callable[[byol.State, byol.Batch], Any]:
    """Maps a function over all devices of all processes and gathers the rows that it returns.

    Args:
      learner: what is trained.
      rows_fn: (learner, state, rows of one replica) -> a tree of arrays (n, ...).

    Returns:
      A function: (replicated state, batch as from `device_put_batch`) -> NumPy arrays
      (n * replicas, ...), the same on every process.
    """

    def gathered(state: byol.State, batch: byol.Batch) -> Any:
        return jax.lax.all_gather(rows_fn(learner, state, batch), AXIS, tiled=True)

    mapped = jax.pmap(gathered, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
    return lambda state, batch: jax.tree.map(np.asarray, local(mapped(state, batch)))


def _needed(state: byol.State) -> byol.State:
    """Of a state, only what an embedding depends on."""
    return state._replace(target_params=(), target_stats=(), opt_state=())


@functools.lru_cache(KEPT)
def embedder(
    learner: byol.Learner,
    embed_fn: Callable[..., jax.Array] = byol.embed,
    needed: Callable[[Any], Any] = _needed,
) -> Callable[[byol.State], Callable[[Any, int], np.ndarray]]:
    """`byol.embed`, or a function like it, over the devices of this process, for any number.

    Args:
      learner: what is trained.
      embed_fn: (learner, state, examples) -> float32 (n, features).
      needed: state -> what `embed_fn` needs of it.

    Returns:
      `embed_with(state)` -> `embed(examples, batch_size)`: a tree of arrays (n, ...) -> float32
      (n, features). `embed_with` copies the state to every device once. The last batch is padded,
      so that all have one shape and compile once.
    """
    devices = jax.local_device_count()
    mapped = jax.pmap(
        lambda state, examples: embed_fn(learner, state, examples),
        in_axes=(None, 0),
        out_axes=0,
        devices=jax.local_devices(),
    )

    def embed_with(state: byol.State) -> Callable[[Any, int], np.ndarray]:
        state = replicate(needed(state))

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
