"""Memory of a step by batch size, next to an estimate.

The estimate is the sum of the state (parameters, momentum, target, statistics), the gradients, the
batch, and the residuals: every array that `jax.vjp` of the loss keeps from the forward for the
backward pass, views and predictions included, parameters excluded, each counted once. XLA may need
less, where it recomputes cheap operations, or more, for temporaries. Its need is that of the
compiled step: arguments, outputs that do not reuse their buffers, temporaries.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from byol_jax import byol
from byol_jax.runs import kinds
from experiments.bench import settings
from experiments.bench.report import Column, Report, Table

ON_CPU = {"small": (32, 128)}
ON_ACCELERATOR = {"resnet18_cifar": (256, 1024), "resnet50": (64, 128, 256)}
COLUMNS = ("state", "gradients", "batch", "residuals", "sum", "XLA")


def run(network: Sequence[str], batch_size: Sequence[int], dtype: Sequence[str]) -> Report:
    """Compiles steps and reads their memory.

    Args:
      network: names in `settings.NETWORKS`; empty for a default, as for the next two.
      batch_size: images per step.
      dtype: names in `settings.DTYPES`.
    """
    on_cpu = jax.default_backend() == "cpu"
    usual = ON_CPU if on_cpu else ON_ACCELERATOR
    table = Table(
        "Memory of a step, MiB",
        [
            Column("step", "text"),
            Column("remat", "text"),
            *(Column(name, "mebibytes") for name in COLUMNS),
            Column("XLA / sum", "ratio"),
            Column("peak on the device", "mebibytes"),
        ],
    )
    for name in network or usual:
        for kind in dtype or (["float32"] if on_cpu else ["bfloat16"]):
            sizes = batch_size or usual.get(name, (32,))
            for size in sizes:
                for remat in (False, True) if size == sizes[-1] else (False,):
                    case = settings.Case(name, size, kind)
                    table.add(str(case), "yes" if remat else "no", *measure(case, remat))
    return Report("memory", [table])


def measure(case: settings.Case, remat: bool) -> list[float | None]:
    """Bytes as in COLUMNS, their ratio, and the device's own peak if it reports one."""
    # XLA does not count what oneDNN works in.
    config = settings.config(case, remat, cpu_convolution="xla")
    learner = settings.learner(config, None)
    shape = (case.batch_size, *kinds.of(config).example_batch(config).examples.shape[1:])
    batch = byol.Batch(
        jax.ShapeDtypeStruct(shape, jnp.uint8),
        None,
        jax.ShapeDtypeStruct((case.batch_size,), jnp.int32),
    )
    state = jax.eval_shape(partial(byol.init, learner, 0), batch)
    parts = [
        num_bytes(state),
        num_bytes(state.online_params),
        num_bytes(batch),
        num_bytes(residuals(learner, state, batch)),
    ]
    update = jax.jit(partial(byol.update, learner), donate_argnums=0)
    compiled = update.lower(state, batch).compile()
    analysis = compiled.memory_analysis()
    needed = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    needed += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    total = sum(parts)
    return [*parts, total, needed, needed / total, peak(compiled, state, batch)]


def residuals(learner: byol.Learner, state: byol.State, batch: byol.Batch) -> list[Any]:
    """Shapes of the arrays that the backward pass receives, without those of state and batch."""

    def backward(state: byol.State, batch: byol.Batch) -> Any:
        def loss(params: byol.Tree) -> jax.Array:
            return byol.loss_fn(params, learner, state, batch)[0]

        return jax.vjp(loss, state.online_params)[1]

    jaxpr = jax.make_jaxpr(backward)(state, batch).jaxpr
    found = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    return [v.aval for v in found - set(jaxpr.invars)]


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, which may be shapes alone."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def peak(compiled: Any, state: byol.State, batch: byol.Batch) -> int | None:
    """The peak of bytes in use on the device during one step.

    None on a CPU, and if an earlier step needed more: the device reports one peak since its start.
    """
    device = jax.local_devices()[0]
    if device.memory_stats() is None:
        return None
    before = device.memory_stats()["peak_bytes_in_use"]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state, batch))
    jax.block_until_ready(compiled(*zeros))
    after = device.memory_stats()["peak_bytes_in_use"]
    return after if after > before else None
