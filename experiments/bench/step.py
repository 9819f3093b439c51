"""One training step: images per second, limits of the device, parts of the step, and PyTorch.

FLOPs are XLA's count for a forward pass of the online network over one view, times two views, times
four: forward, backward at twice the cost, and the target's forward pass. Bytes are XLA's count of
what the compiled step reads and writes; the share is left out on a CPU, where caches hold most.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byol_jax import backend, byol, parallel
from byol_jax.errors import UserError
from byol_jax.runs import kinds
from byol_jax.runs import run as run_lib
from byol_jax.train import nonfinite
from experiments import scale
from experiments.bench import bounds, kernels, measure, peers, settings
from experiments.bench import report as report_lib
from experiments.bench.report import Column, Report, Table

OURS = "byol_jax"
PRODUCT, COPY = "matrix product", "memory copy"
# The default cases.
ON_CPU = (
    *(settings.Case("small", 128, dtype) for dtype in settings.DTYPES),
    *(settings.Case("quickstart", 128, dtype) for dtype in settings.DTYPES),
    *(settings.Case("resnet10", 128, dtype) for dtype in settings.DTYPES),
    *(settings.Case("resnet50", 8, dtype) for dtype in settings.DTYPES),
)
ON_ACCELERATOR = (
    settings.Case("resnet50", 256, "bfloat16"),
    settings.Case("resnet18_cifar", 256, "bfloat16"),
    settings.Case("resnet18_cifar", 1024, "bfloat16"),
)


class Ours:
    """Our training step with its state, and its parts."""

    def __init__(self, case: settings.Case):
        self.case, self.config = case, settings.config(case)
        self.learner = settings.learner(self.config, parallel.AXIS)
        blank = kinds.of(self.config).example_batch(self.config).examples
        shape = (case.batch_size, *blank.shape[1:])
        self.images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        batch = byol.Batch(self.images, None, np.arange(case.batch_size, dtype=np.int32))
        state = jax.jit(partial(byol.init, self.learner, 0))(batch)
        self._batch = parallel.device_put_batch(batch)
        self._update = parallel.update(self.learner, nonfinite.step_fn(skip=False))
        self._state = parallel.replicate(state)

    def step(self) -> jax.Array:
        """Does one update; returns its loss."""
        self._state, metrics, _ = self._update(self._state, self._batch)
        return metrics["loss"]

    def flops(self) -> float:
        """FLOPs of an update, counted as in the module's docstring."""
        batch = self._batch.positions.size
        learner = settings.learner(settings.config(self.case, cpu_convolution="xla"), None)
        forward = scale.forward_flops(learner, self._state, self.config)
        return scale.VIEWS * scale.PASSES * batch * forward

    def bytes(self) -> float:
        """Bytes that the compiled update reads and writes; compiles it again."""
        learner = settings.learner(self.config, None)
        state = jax.eval_shape(lambda: self._state)
        batch = byol.Batch(self.images, None, np.zeros(len(self.images), np.int32))
        update = jax.jit(partial(byol.update, learner), donate_argnums=0)
        return update.lower(state, batch).compile().cost_analysis()["bytes accessed"]

    def views(self) -> Callable[[], object]:
        """The augmentations alone."""
        augment = jax.jit(partial(byol.augment_batch, self.learner))
        batch = byol.Batch(self.images, None, np.arange(len(self.images), dtype=np.int32))
        arguments = jax.device_put((jax.random.key(0), batch))
        return lambda: augment(*arguments)

    def optimizer(self) -> Callable[[], object]:
        """LARS and the target's moving average alone, on copies of the state."""

        @partial(jax.jit, donate_argnums=(1, 2, 3))
        def apply(gradients, opt_state, params, target):
            updates, opt_state = self.learner.optimizer.update(gradients, opt_state, params)
            params = optax.apply_updates(params, updates)
            return opt_state, params, byol.update_target(target, params, jnp.float32(0.996))

        state = jax.tree.map(jnp.copy, parallel.local(self._state))
        gradients = state.online_params
        carried = [state.opt_state, jax.tree.map(jnp.copy, gradients), state.target_params]

        def work() -> object:
            carried[:] = apply(gradients, *carried)
            return carried[1]

        return work


def run(
    against: Sequence[str],
    network: Sequence[str],
    batch_size: Sequence[int],
    dtype: Sequence[str],
    seconds: float,
) -> Report:
    """Measures steps, each case in its own process: on a CPU, the devices depend on the batch.

    Args:
      against: names in `peers.STEPS`; empty for all that are installed.
      network: names in `settings.NETWORKS`; empty for a default, as for the next two.
      batch_size: images per step.
      dtype: names in `settings.DTYPES`.
      seconds: approximate time for each table.

    Raises:
      UserError: there are several accelerators, a requested peer is missing, or a case failed.
    """
    on_cpu = report_lib.facts()["device"]["platform"] == "cpu"
    chosen = cases(ON_CPU if on_cpu else ON_ACCELERATOR, network, batch_size, dtype)
    if len(chosen) == 1:
        return run_case(chosen[0], against, seconds)
    report = Report("step")
    for case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "step.json"
            command = [
                *(sys.executable, "-m", "experiments.bench", "step", f"--output={output}"),
                *(f"--network={case.network}", f"--batch_size={case.batch_size}"),
                *(f"--dtype={case.dtype}", f"--seconds={seconds}"),
                *([f"--against={','.join(against)}"] if against else []),
            ]
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
                raise UserError(f"{case} could not be measured; the reason is above.")
            one = report_lib.load(output)
        report.tables += one.tables
        report.notes += [note for note in one.notes if note not in report.notes]
    return report


def run_case(case: settings.Case, against: Sequence[str], seconds: float) -> Report:
    """Measures one case in this process: see `run`."""
    backend.use_cpu_devices(backend.most_cpu_devices(case.batch_size))
    on_cpu = jax.default_backend() == "cpu"
    if jax.device_count() > 1 and not on_cpu:
        raise UserError(
            f"JAX finds {jax.device_count()} devices, but PyTorch's step and the limits use one: "
            "make one visible, for example with CUDA_VISIBLE_DEVICES=0."
        )
    modules, notes = peers.available(against, peers.STEPS)
    ours, theirs = "CPU" if on_cpu else "accelerator", {m.device() for m in modules.values()}
    if theirs - {"cpu" if on_cpu else "cuda"}:
        notes.append(
            f"Not measured: PyTorch, which runs on the {theirs.pop()}, but JAX on the {ours}."
        )
        modules = {}
    report = Report("step", notes=notes)
    report.tables += tables(case, modules, seconds, notes)
    facts = run_lib.computed_by(settings.config(case))
    notes.append(f"{case}: byol_jax on {run_lib.describe(facts)}.")
    return report


def cases(
    usual: Sequence[settings.Case],
    network: Sequence[str],
    batch_size: Sequence[int],
    dtype: Sequence[str],
) -> list[settings.Case]:
    """The default cases of the given networks, or all combinations with given sizes or dtypes."""
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
    """A table of steps and one of the parts of our step."""
    ours = Ours(case)
    product, product_flops = bounds.matrix_product(case.dtype)
    copy, copy_bytes = bounds.memory_copy()
    turns = {OURS: measure.repeated(ours.step, jax.block_until_ready)}
    for name, module in modules.items():
        compiled, label = name == "pytorch_compile", peers.STEPS[name][1]
        try:
            peer = module.Step(ours.learner, ours.images, case.dtype, compiled=compiled)
            peer.wait(peer())
        except RuntimeError as error:  # out of memory, or no compiler
            notes.append(f"Not measured: {case}, {label}: {str(error).strip().splitlines()[0]}")
            continue
        turns[label] = measure.repeated(peer, peer.wait)
    turns |= {
        "augmentations": measure.repeated(ours.views(), jax.block_until_ready),
        "LARS and target": measure.repeated(ours.optimizer(), jax.block_until_ready),
        PRODUCT: product,
        COPY: copy,
    }
    took = measure.in_turn(turns, seconds=seconds)
    flops = ours.flops()
    columns = [
        Column("step", "text"),
        Column("images/s", "number"),
        Column("speed-up of byol_jax (x)", "ratio"),
        Column("share of the matrix rate", "share"),
    ]
    copy_shares: dict[str, measure.Spread] = {}
    if jax.default_backend() != "cpu":
        columns.append(Column("share of the copy rate", "share"))
        copy_shares[OURS] = share(ours.bytes() / copy_bytes, took[COPY], took[OURS])
    steps = Table(f"One step: {case}", columns)
    contenders = (OURS, *(label for _, label in peers.STEPS.values()))
    for name in (name for name in contenders if name in took):
        steps.add(
            name,
            measure.rates(took[name], case.batch_size),
            None if name == OURS else measure.ratios(took[name], took[OURS]),
            share(flops / product_flops, took[PRODUCT], took[name]),
            *([copy_shares.get(name)] if copy_shares else []),
        )
    parts = Table(
        f"Parts of our step, each timed alone: {case}",
        [
            Column("part", "text"),
            Column("seconds", "seconds"),
            Column("share of the step", "share"),
        ],
    )
    for name in (OURS, "augmentations", "LARS and target"):
        ratio = None if name == OURS else measure.ratios(took[name], took[OURS])
        parts.add("the complete step" if name == OURS else name, measure.spread(took[name]), ratio)
    notes.append(
        f"{case}: {flops / case.batch_size / 1e9:.2f} GFLOPs per image; the matrix product reaches "
        f"{product_flops / np.median(took[PRODUCT]) / 1e9:,.0f} GFLOP/s, the copy "
        f"{copy_bytes / np.median(took[COPY]) / 1e9:,.1f} GB/s."
    )
    largest = kernels.largest(ours.step)
    return [steps, parts, *([kernels.table(case, largest)] if largest else [])]


def share(work: float, bound: Sequence[float], seconds: Sequence[float]) -> measure.Spread:
    """The share of the limit's rate that is reached, round by round.

    Args:
      work: amount of work, relative to a turn of the limit.
      bound: seconds of the limit's turns.
      seconds: seconds of the turns that do the work.
    """
    return measure.spread([work * b / s for b, s in zip(bound, seconds, strict=True)])
