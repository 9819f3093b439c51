"""One training step: images a second, the device's bounds, the step's own parts, and PyTorch.

FLOPs are those that XLA counts for a forward pass of the online network over one view, times two
views, times four: forward, backward at twice that, and the target's forward pass. The bytes are
those that XLA says its compiled step reads and writes in memory; on a CPU, where caches hold most
of them, that share is left out.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byol_jax import byol, parallel
from byol_jax.augment import image as image_augment
from byol_jax.errors import UserError
from byol_jax.runs import build
from byol_jax.train import nonfinite
from experiments import scale
from experiments.bench import bounds, kernels, measure, peers, settings
from experiments.bench.report import Column, Report, Table

OURS = "byol_jax"
PRODUCT, COPY = "matrix product", "memory copy"
# What is timed if nothing is named, and on a CPU against which peers if none is named either:
# torch.compile takes a minute there, and a step of ResNet-50 several seconds.
ON_CPU = {
    settings.Case("small", 128, "float32"): tuple(peers.STEPS),
    settings.Case("small", 128, "bfloat16"): ("pytorch",),
    settings.Case("resnet50", 8, "float32"): (),
}
ON_ACCELERATOR = (
    settings.Case("resnet50", 256, "bfloat16"),
    settings.Case("resnet18_cifar", 256, "bfloat16"),
    settings.Case("resnet18_cifar", 1024, "bfloat16"),
)


class Ours:
    """Our own step as training does it, with its state, and its parts alone."""

    def __init__(self, case: settings.Case):
        self.config = settings.config(case)
        self.learner = settings.learner(self.config, parallel.AXIS)
        shape = build.image_shape(self.config)
        state = jax.jit(lambda: byol.init(self.learner, seed=0, image_shape=shape))()
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (2, case.batch_size, *shape), np.uint8)
        positions = np.arange(case.batch_size, dtype=np.int32)
        self._batch = parallel.device_put_batch(byol.Batch(self.images, None, positions))
        self._update = parallel.update(self.learner, partial(nonfinite.update, skip=False))
        self._state = parallel.replicate(state)

    def step(self) -> jax.Array:
        """One update; its loss."""
        self._state, metrics = self._update(self._state, self._batch)
        return metrics["loss"]

    def flops(self) -> float:
        """FLOPs of an update, as the module's docstring counts them."""
        batch = self._batch.positions.size
        forward = scale.forward_flops(self.learner, self._state, self.config)
        return scale.VIEWS * scale.PASSES * batch * forward

    def bytes(self) -> float:
        """Bytes that the compiled update reads and writes; compiles it once more."""
        learner = settings.learner(self.config, None)
        state = jax.eval_shape(lambda: self._state)
        batch = byol.Batch(self.images, None, np.zeros(len(self.images[0]), np.int32))
        update = jax.jit(partial(byol.update, learner), donate_argnums=0)
        return update.lower(state, batch).compile().cost_analysis()["bytes accessed"]

    def views(self) -> Callable[[], object]:
        """The photometric views alone."""
        augment = jax.jit(partial(image_augment.augment, self.learner.policy))
        positions = np.arange(len(self.images[0]), dtype=np.int32)
        arguments = jax.device_put((jax.random.key(0), self.images, positions))
        return lambda: augment(*arguments)

    def optimizer(self) -> Callable[[], object]:
        """LARS and the target's moving average alone, on copies of the state."""

        @partial(jax.jit, donate_argnums=(1, 2, 3))
        def follow(gradients, opt_state, params, target):
            updates, opt_state = self.learner.optimizer.update(gradients, opt_state, params)
            params = optax.apply_updates(params, updates)
            return opt_state, params, byol.update_target(target, params, jnp.float32(0.996))

        state = jax.tree.map(jnp.copy, parallel.local(self._state))
        gradients = state.online_params
        carried = [state.opt_state, jax.tree.map(jnp.copy, gradients), state.target_params]

        def work() -> object:
            carried[:] = follow(gradients, *carried)
            return carried[1]

        return work


def run(
    against: Sequence[str],
    network: Sequence[str],
    batch_size: Sequence[int],
    dtype: Sequence[str],
    seconds: float,
) -> Report:
    """Measures steps.

    Args:
      against: names of `peers.STEPS`; empty for all, but where that takes too long.
      network: of `settings.NETWORKS`; empty for what suits the device, likewise the next two.
      batch_size: images in a step.
      dtype: of `settings.DTYPES`.
      seconds: for the rounds of each table, about.

    Raises:
      UserError: there are several devices, or a peer that was asked for is not installed.
    """
    if jax.device_count() > 1:
        raise UserError(
            f"JAX sees {jax.device_count()} devices, and PyTorch's step and the bounds use one: "
            "leave one visible, such as by CUDA_VISIBLE_DEVICES=0."
        )
    on_cpu = jax.default_backend() == "cpu"
    modules, notes = peers.available(against, peers.STEPS)
    ours, theirs = "CPU" if on_cpu else "accelerator", {m.device() for m in modules.values()}
    if theirs - {"cpu" if on_cpu else "cuda"}:
        notes.append(f"Not measured: PyTorch, which has only a {theirs.pop()}, and JAX a {ours}.")
        modules = {}
    report = Report("step", notes=notes)
    for case in cases(tuple(ON_CPU) if on_cpu else ON_ACCELERATOR, network, batch_size, dtype):
        chosen = dict(modules)
        if on_cpu and not against:
            wanted = ON_CPU.get(case, tuple(modules))
            chosen = {name: module for name, module in modules.items() if name in wanted}
        left_out = [peers.STEPS[name][1] for name in modules if name not in chosen]
        if left_out:
            notes.append(
                f"Not measured: {case}, {' and '.join(left_out)}: slow on a CPU, and left out "
                "where --against does not ask for it."
            )
        report.tables += tables(case, chosen, seconds, notes)
    return report


def cases(
    usual: Sequence[settings.Case],
    network: Sequence[str],
    batch_size: Sequence[int],
    dtype: Sequence[str],
) -> list[settings.Case]:
    """The usual cases of the networks named, or of all; with sizes or dtypes, each with each."""
    found = []
    for name in network or dict.fromkeys(case.network for case in usual):
        own = [case for case in usual if case.network == name]
        own = own or [settings.Case(name, 64, usual[0].dtype)]
        if not batch_size and not dtype:
            found += own
        else:
            sizes = batch_size or dict.fromkeys(case.batch_size for case in own)
            kinds = dtype or [own[0].dtype]
            found += [settings.Case(name, size, kind) for size in sizes for kind in kinds]
    return found


def tables(
    case: settings.Case, modules: dict[str, object], seconds: float, notes: list[str]
) -> list[Table]:
    """A table of steps and one of the parts of ours."""
    ours = Ours(case)
    product, product_flops = bounds.matrix_product(case.dtype)
    copy, copy_bytes = bounds.memory_copy()
    turns = {OURS: measure.repeated(ours.step, jax.block_until_ready)}
    for name, module in modules.items():
        compiled, words = name == "pytorch_compile", peers.STEPS[name][1]
        try:
            peer = module.Step(ours.learner, ours.images, case.dtype, compiled=compiled)
            peer.wait(peer())
        except RuntimeError as error:  # out of memory, or a compiler that is not there
            notes.append(f"Not measured: {case}, {words}: {str(error).strip().splitlines()[0]}")
            continue
        turns[words] = measure.repeated(peer, peer.wait)
    turns |= {
        "photometric views": measure.repeated(ours.views(), jax.block_until_ready),
        "LARS and target": measure.repeated(ours.optimizer(), jax.block_until_ready),
        PRODUCT: product,
        COPY: copy,
    }
    took = measure.in_turn(turns, seconds=seconds)
    flops = ours.flops()
    columns = [
        Column("step", "text"),
        Column("images/s", "number"),
        Column("byol_jax is so many times as fast", "ratio"),
        Column("share of the matrix rate", "share"),
    ]
    of_copy: dict[str, measure.Spread] = {}
    if jax.default_backend() != "cpu":
        columns.append(Column("share of the copy rate", "share"))
        of_copy[OURS] = share(ours.bytes() / copy_bytes, took[COPY], took[OURS])
    steps = Table(f"One step: {case}", columns)
    contenders = (OURS, *(words for _, words in peers.STEPS.values()))
    for name in (name for name in contenders if name in took):
        steps.add(
            name,
            measure.rates(took[name], case.batch_size),
            None if name == OURS else measure.ratios(took[name], took[OURS]),
            share(flops / product_flops, took[PRODUCT], took[name]),
            *([of_copy.get(name)] if of_copy else []),
        )
    parts = Table(
        f"Parts of our step, each timed alone: {case}",
        [
            Column("part", "text"),
            Column("seconds", "seconds"),
            Column("share of the step", "share"),
        ],
    )
    for name in (OURS, "photometric views", "LARS and target"):
        of_step = None if name == OURS else measure.ratios(took[name], took[OURS])
        parts.add("the whole step" if name == OURS else name, measure.spread(took[name]), of_step)
    notes.append(
        f"{case}: {flops / case.batch_size / 1e9:.2f} GFLOPs an image; the matrix product reaches "
        f"{product_flops / np.median(took[PRODUCT]) / 1e9:,.0f} GFLOP/s, the copy "
        f"{copy_bytes / np.median(took[COPY]) / 1e9:,.1f} GB/s."
    )
    largest = kernels.largest(ours.step)
    return [steps, parts, *([kernels.table(case, largest)] if largest else [])]


def share(work: float, bound: Sequence[float], seconds: Sequence[float]) -> measure.Spread:
    """The share of a bound's rate that is reached, round by round.

    Args:
      work: how many times as much is done as in a turn of the bound.
      bound: seconds of its turns.
      seconds: of the turns that do the work.
    """
    return measure.spread([work * b / s for b, s in zip(bound, seconds, strict=True)])
