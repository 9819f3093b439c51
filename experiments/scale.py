"""The communication of an update between devices, and a small model of its cost.

    python -m experiments.scale [--device=h100] [--global_batch_size=4096] [--flops_share=0.25] \
        [--link_share=0.6]

prints the tables of docs/scale.md, which explains them. Sizes are counted from the network itself:
ResNet-50 with the paper's heads, at 224 pixels. Times are the model's, not measurements.

All-reduces of one update (byol.update under parallel.update):

- each batch norm, in each pass of either network over either view, averages mean and mean of
  squares; in the online network the backward pass also averages their gradients;
- the gradients are averaged once, together with the running statistics of both networks.

Sources of the constants: NVIDIA's data sheets of H100 SXM and DGX H100 (dense bfloat16; NVLink 900
GB/s, the sum of both directions; a 400 Gb/s adapter per GPU), and cloud.google.com/tpu/docs for v4,
v5e and v5p (interconnect of a chip in one direction; 100 Gb/s adapters between slices). Latencies
and the two shares are assumptions.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from byol_jax import byol
from byol_jax.cli import app
from byol_jax.errors import ConfigError
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve

FLOAT = 4  # bytes
CLASSES = 1000  # of the probe
EXAMPLES = 1_281_167  # in ImageNet
VIEWS = 2
COUNTS = (8, 16, 32, 64, 128, 256, 512)  # numbers of devices
# FLOPs relative to a forward pass: the online network runs forward, then backward at twice the cost
# (for the inputs and the weights of each layer), and the target runs forward.
PASSES = 1 + 2 + 1
BACKWARD = 2


class Device(NamedTuple):
    """An accelerator and its links; rates are per device and in one direction."""

    flops: float  # per second, bfloat16
    domain: int  # devices connected by the fast links
    link: float  # bytes per second within the domain
    network: float  # bytes per second to other domains
    launch: float  # seconds to start a collective
    hop: float  # latency between devices of a domain, seconds
    network_hop: float  # and between domains


DEVICES = {
    "h100": Device(989e12, 8, 450e9, 50e9, 10e-6, 1e-6, 3e-6),
    "tpu-v4": Device(275e12, 4096, 300e9, 6.25e9, 2e-6, 1e-6, 10e-6),
    "tpu-v5e": Device(197e12, 256, 200e9, 3.125e9, 2e-6, 1e-6, 10e-6),
    "tpu-v5p": Device(459e12, 6144, 600e9, 6.25e9, 2e-6, 1e-6, 10e-6),
}

DEVICE = flags.DEFINE_enum("device", None, list(DEVICES), "One device; all by default.")
BATCH_SIZE = flags.DEFINE_integer("global_batch_size", 4096, "Images per update, over all devices.")
FLOPS_SHARE = flags.DEFINE_float("flops_share", 0.25, "Share of the peak FLOP/s that is reached.")
LINK_SHARE = flags.DEFINE_float("link_share", 0.6, "Share of the link rates that is reached.")


class Traffic(NamedTuple):
    """The data that the devices average in one update."""

    parameters: int  # online, probe included
    gradients: int  # bytes, once
    statistics: int  # bytes of the running statistics of both networks, once
    moments: tuple[int, ...]  # bytes of each all-reduce of a batch norm


class Step(NamedTuple):
    """Estimated seconds of one update."""

    compute: float
    moments: float  # all-reduces of batch norms, on which the next layer depends
    rest: float  # all-reduce of gradients and running statistics
    exposed: float  # the part of `rest` that does not overlap with the backward pass

    @property
    def total(self) -> float:
        """The complete update."""
        return self.compute + self.moments + self.exposed


def paper() -> ConfigDict:
    """The paper's ImageNet setting, resolved; the data are not opened."""
    config = config_lib.default()
    config.data.source = config_lib.UNKNOWN_SOURCE
    config.epochs = 1000
    config.cpu_convolution = "xla"  # whose FLOPs XLA counts
    return resolve(config)[0]


def learner_and_state(config: ConfigDict, num_classes: int) -> tuple[byol.Learner, byol.State]:
    """The learner of a resolved config, and the shapes of its state."""
    data = {"num_classes": num_classes}
    learner = run_lib.Run(config, data, EXAMPLES // config.batch_size).learner()
    return learner, run_lib.abstract_state(learner, config)


def traffic(state: byol.State, accum_steps: int = 1) -> Traffic:
    """The data that `byol.update` averages over the devices.

    Args:
      state: arrays or their shapes.
      accum_steps: number of micro-batches, each with its own batch-norm statistics.
    """

    def size(tree: Any) -> int:
        return sum(FLOAT * leaf.size for leaf in jax.tree.leaves(tree))

    def norm_sizes(stats: Any) -> list[int]:
        named = jax.tree_util.tree_leaves_with_path(stats)
        return [2 * FLOAT * leaf.size for path, leaf in named if path[-1].key == "mean"]

    # Forward and backward in the online network, forward in the target's.
    moments = 2 * norm_sizes(state.online_stats) + norm_sizes(state.target_stats)
    return Traffic(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.online_params)),
        gradients=size(state.online_params),
        statistics=size((state.online_stats, state.target_stats)),
        moments=tuple(VIEWS * accum_steps * moments),
    )


def forward_flops(learner: byol.Learner, state: byol.State, config: ConfigDict) -> float:
    """XLA's count of FLOPs of the online network for one view of one image."""
    variables = {"params": state.online_params, "batch_stats": state.online_stats}
    shape = kinds.of(config).example_batch(config).examples.shape[2:]
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    apply = jax.jit(lambda variables, x: learner.online.apply(variables, x, train=False))
    return apply.lower(variables, image).cost_analysis()["flops"]


def ring(size: float, count: int, rate: float) -> float:
    """Seconds of an all-reduce of `size` bytes in a ring of `count` devices.

    Each device sends (count - 1) / count of the bytes twice: partial sums, then complete sums.
    """
    return 2 * (count - 1) / count * size / rate


def all_reduce(device: Device, size: float, count: int, link_share: float) -> float:
    """Seconds of an all-reduce: rings within domains, then for each part a ring across domains.

    Latency is that of a tree, up and down.
    """
    inside = min(count, device.domain)
    domains = -(-count // device.domain)
    seconds = device.launch + 2 * math.ceil(math.log2(inside)) * device.hop
    seconds += ring(size, inside, link_share * device.link)
    if domains > 1:
        seconds += 2 * math.ceil(math.log2(domains)) * device.network_hop
        # After the first half of the inner ring, each device holds the sum of its own part.
        seconds += ring(size / inside, domains, link_share * device.network)
    return seconds


def step(
    device: Device,
    sent: Traffic,
    flops: float,
    count: int,
    *,
    batch_size: int,
    flops_share: float,
    link_share: float,
) -> Step:
    """Estimates one update.

    Args:
      device: the accelerator.
      sent: the data communicated.
      flops: of one forward pass of one view of one image.
      count: number of devices.
      batch_size: images over all devices.
      flops_share: share of `device.flops` that is reached, in 0..1.
      link_share: share of the link rates that is reached, in 0..1.
    """
    forward = VIEWS * flops * batch_size / count / (flops_share * device.flops)
    compute = PASSES * forward
    rest = all_reduce(device, sent.gradients + sent.statistics, count, link_share)
    moments = sum(all_reduce(device, size, count, link_share) for size in sent.moments)
    return Step(compute, moments, rest, exposed=max(0.0, rest - BACKWARD * forward))


def table(
    device: Device,
    sent: Traffic,
    flops: float,
    *,
    batch_size: int,
    flops_share: float,
    link_share: float,
) -> str:
    """The Markdown table of a device, a row for each of `COUNTS`.

    Raises:
      ConfigError: the batch size does not divide among the devices, or a share is outside 0..1.
    """
    if batch_size < 1 or batch_size % COUNTS[-1]:
        raise ConfigError(
            f"--global_batch_size={batch_size} does not divide among {COUNTS[-1]} devices: make "
            f"it a multiple of {COUNTS[-1]}."
        )
    for name, share in (("flops_share", flops_share), ("link_share", link_share)):
        if not 0 < share <= 1:
            raise ConfigError(f"--{name}={share} must be above 0 and at most 1.")
    lines = [
        "| devices | images each | compute ms | norms ms | gradients ms | exposed ms | step ms |"
        " computing | images/s |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for count in COUNTS:
        took = step(
            device,
            sent,
            flops,
            count,
            batch_size=batch_size,
            flops_share=flops_share,
            link_share=link_share,
        )
        milliseconds = [took.compute, took.moments, took.rest, took.exposed, took.total]
        cells = [str(count), str(batch_size // count)]
        cells += [f"{1000 * seconds:.1f}" for seconds in milliseconds]
        cells += [f"{took.compute / took.total:.0%}", f"{batch_size / took.total:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table for each device, then the counts."""
    config = paper()
    learner, state = learner_and_state(config, CLASSES)
    sent, flops = traffic(state), forward_flops(learner, state, config)
    for name in DEVICES if DEVICE.value is None else [DEVICE.value]:
        lines = table(
            DEVICES[name],
            sent,
            flops,
            batch_size=BATCH_SIZE.value,
            flops_share=FLOPS_SHARE.value,
            link_share=LINK_SHARE.value,
        )
        print(f"\n### {name}\n\n{lines}")
    print("\n" + counted(sent, flops))


def counted(sent: Traffic, flops: float) -> str:
    """The counts that the tables are based on, as a Markdown table."""
    rows = [
        ("parameters with a gradient", f"{sent.parameters:,}"),
        ("gradients", f"{sent.gradients / 1e6:.1f} MB in 1 all-reduce"),
        ("running statistics", f"{sent.statistics / 1e6:.2f} MB with them"),
        ("batch norms", f"{sum(sent.moments) / 1e6:.2f} MB in {len(sent.moments)} all-reduces"),
        ("one forward pass of one view", f"{flops / 1e9:.2f} GFLOPs"),
        ("one update", f"{VIEWS * PASSES * flops / 1e9:.1f} GFLOPs an image"),
    ]
    return "\n".join(["| of one update | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


if __name__ == "__main__":
    app.run(main)
