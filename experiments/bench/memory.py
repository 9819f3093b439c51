"""Memory of a step by batch size, beside what it should take.

It should take the state (parameters, momentum, target, statistics), the gradients, the batch, and
what the forward pass keeps for the backward pass: every array that `jax.vjp` of the loss carries
from one to the other, views and predictions included and parameters not, each counted once. XLA may
need less, where it computes again what is cheap, or more, for what lives for a moment only. What it
needs is what its compiled step says: arguments, results that do not take their place, temporaries.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from byol_jax import byol
from byol_jax.runs import build
from experiments.bench import settings
from experiments.bench.report import Column, Report, Table

ON_CPU = {"small": (32, 128)}
ON_ACCELERATOR = {"resnet18_cifar": (256, 1024), "resnet50": (64, 128, 256)}
COLUMNS = ("state", "gradients", "batch", "kept", "sum", "XLA")


def run(network: Sequence[str], batch_size: Sequence[int], dtype: Sequence[str]) -> Report:
    """Compiles steps and reads their memory.

    Args:
      network: of `settings.NETWORKS`; empty for what suits the device, likewise the next two.
      batch_size: images in a step.
      dtype: of `settings.DTYPES`.
    """
    on_cpu = jax.default_backend() == "cpu"
    usual = ON_CPU if on_cpu else ON_ACCELERATOR
    table = Table(
        "Memory of a step, MiB",
        [
            Column("step", "text"),
            Column("blocks computed again", "text"),
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
                    table.add(str(case), "yes" if remat else "no", *weighed(case, remat))
    return Report("memory", [table])


def weighed(case: settings.Case, remat: bool) -> list[float | None]:
    """Bytes as in COLUMNS, their ratio, and the device's own peak where it says one."""
    config = settings.config(case, remat)
    learner = settings.learner(config, None)
    shape = build.image_shape(config)
    state = jax.eval_shape(lambda: byol.init(learner, seed=0, image_shape=shape))
    batch = byol.Batch(
        jax.ShapeDtypeStruct((2, case.batch_size, *shape), jnp.uint8),
        None,
        jax.ShapeDtypeStruct((case.batch_size,), jnp.int32),
    )
    parts = [
        size_of(state),
        size_of(state.online_params),
        size_of(batch),
        size_of(kept(learner, state, batch)),
    ]
    update = jax.jit(functools.partial(byol.update, learner), donate_argnums=0)
    compiled = update.lower(state, batch).compile()
    needs = compiled.memory_analysis()
    needed = needs.argument_size_in_bytes + needs.temp_size_in_bytes
    needed += needs.output_size_in_bytes - needs.alias_size_in_bytes
    total = sum(parts)
    return [*parts, total, needed, needed / total, peak(compiled, state, batch)]


def kept(learner: byol.Learner, state: byol.State, batch: byol.Batch) -> list[Any]:
    """Shapes of the arrays that the backward pass finds, beside the state."""

    def backward(state: byol.State, view1: jax.Array, view2: jax.Array) -> Any:
        def loss(params: byol.Tree) -> jax.Array:
            return byol.loss_fn(params, learner, state, view1, view2, None)[0]

        return jax.vjp(loss, state.online_params)[1]

    shape = jax.ShapeDtypeStruct(batch.views.shape[1:], jnp.float32)
    jaxpr = jax.make_jaxpr(backward)(state, shape, shape).jaxpr
    of_state = set(jaxpr.invars[: len(jax.tree.leaves(state))])
    found = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    return [v.aval for v in found - of_state]


def size_of(tree: Any) -> int:
    """Bytes of all arrays, or of their shapes."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def peak(compiled: Any, state: byol.State, batch: byol.Batch) -> int | None:
    """The most bytes in use on the device during one step.

    None on a CPU, and where a step before needed more: the device says only the most of all time.
    """
    device = jax.local_devices()[0]
    if device.memory_stats() is None:
        return None
    before = device.memory_stats()["peak_bytes_in_use"]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state, batch))
    jax.block_until_ready(compiled(*zeros))
    after = device.memory_stats()["peak_bytes_in_use"]
    return after if after > before else None
