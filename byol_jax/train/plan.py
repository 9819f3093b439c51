"""Settings for images that nobody has trained on yet, from a look at them and at the machine.

A preset is chosen and fitted to the images. The rules are few, so that they can be read, and the
same images on the same machine always give the same settings. docs/small_data.md has the
measurements that they rest on, and says what was not measured.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import backend, data
from byol_jax.data.look import Look
from byol_jax.data.look import look as look_at
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs import config as config_lib
from byol_jax.runs import inputs, paths, processes, tree
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import MIN_BATCH_SIZE, resolve
from byol_jax.train import preset, target_decay

SMALL_SIDE = 48  # pixels: up to here images are trained on at 32 pixels, as those of CIFAR-10
MANY = 50_000  # images from which on an accelerator trains a ResNet-50
# Of a run on an accelerator: images that it sees, repeated ones included, and limits of its length.
SEEN, FEWEST_EPOCHS, MOST_EPOCHS, FEWEST_STEPS = 10_000_000, 100, 1000, 3000
CPU_STEPS, CPU_BATCH_SIZE = 3000, 128  # minutes on two cores
SIZE_STEP = 32  # pixels: image sizes are multiples, as a ResNet halves them five times
EVALUATIONS = 10  # of a run, at least
# Bytes that an example takes in training, in bfloat16 at 224 pixels; they grow with the area of the
# maps, which the stem of ImageNet divides by 16, "strided" by 4 and "cifar" by 1.
BYTES_PER_EXAMPLE = {"resnet18": 60e6, "resnet50": 250e6}
MEMORY_SHARE = 0.6  # of a device, for examples


class Machine(NamedTuple):
    """Where training would run."""

    platform: str  # cpu, gpu or tpu
    name: str
    devices: int  # of a CPU, its cores
    memory: float | None  # bytes of a device; None where unknown

    def __str__(self) -> str:
        if self.platform == "cpu":
            return f"{self.devices} cores of {self.name}, no GPU"
        memory = "" if self.memory is None else f" with {self.memory / 1e9:.0f} GB"
        return f"{self.devices} x {self.name}{memory}"


class Plan(NamedTuple):
    """What was chosen."""

    config: ConfigDict
    lines: list[tuple[str, str, str]]  # a name, a value, and why


def this_machine() -> Machine:
    """The devices that JAX finds; it starts JAX."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return Machine("cpu", backend.processor(), backend.cores(), None)
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return Machine(device.platform, device.device_kind, jax.device_count(), memory)


def planned(
    source: data.Source | None,
    workdir: str | paths.AnyPath,
    settings: dict[str, Any],
    cpu_devices: int | None = None,
) -> ConfigDict:
    """The config of the run in a folder, or if there is none yet, a new one; printed with reasons.

    Args:
      source: images; None if `settings` names them by "data.source".
      workdir: the folder. A run there keeps its settings, as it would be refused with others.
      settings: what the user has decided, by dotted key.
      cpu_devices: as of `loop.train`.

    Raises:
      UserError: the images cannot be read, or not be trained on; or a setting cannot be used.
    """
    workdir = paths.path(workdir) if isinstance(workdir, str) else workdir
    if run_lib.has_checkpoint(workdir):
        return preset.changed(run_lib.read(workdir).config, settings)
    if source is None:
        source = _open(preset.changed(config_lib.default(), settings), settings)
    else:
        if not isinstance(source, data.ImageSource):
            raise ConfigError(f"{source.name} is not of images: name a preset of its kind.")
        settings = {"data.channels": source.channels} | settings
    look = look_at(source)
    if not jax.distributed.is_initialized():  # else one device for each process
        chosen = preset.largest_batch(CPU_BATCH_SIZE, look.num_examples)
        batch_size = settings.get("batch_size", chosen)
        most = backend.most_cpu_devices(batch_size // max(1, settings.get("accum_steps", 1)))
        backend.use_cpu_devices(cpu_devices or most)
    machine = this_machine()
    plan = make_plan(look, machine, settings)
    if processes.is_first():
        print(*describe(plan, look, machine, source.name), sep="\n", flush=True)
    return plan.config


def _open(config: ConfigDict, settings: dict[str, Any]) -> data.Source:
    """The training images; gray arrays, which cannot be opened as colour, as they are."""
    try:
        return inputs.open_split(config, config.data.train_split)
    except DataError:
        if "data.channels" in settings:
            raise
        config.data.channels = 1
        with contextlib.suppress(DataError):
            return inputs.open_split(config, config.data.train_split)
        raise


def make_plan(look: Look, machine: Machine, settings: dict[str, Any]) -> Plan:
    """A config for some images on a machine.

    Args:
      look: what the images are like.
      machine: where it trains.
      settings: what the user has decided, by dotted key, such as {"epochs": 100}. What is open
        follows it.

    Raises:
      ConfigError: there are fewer than four images, or a setting cannot be used.
    """
    if look.num_examples < MIN_BATCH_SIZE:
        raise ConfigError(
            f"{look.num_examples} image(s) are too few to train on: bring {MIN_BATCH_SIZE} or "
            "more, better hundreds."
        )
    name, why = _preset_name(look, machine)
    config = preset.changed(preset.get(name), {"data.source": "", "data.test_split": ""})
    fit_images(config, look, settings)
    _fit_machine(config, look, machine)
    if "steps" in settings or "epochs" in settings:
        settings = {"steps": 0, "epochs": 0} | settings
    for key in ("views.mean", "views.std"):  # empty: those of the images
        if key in settings and not any(settings[key]):
            settings = {k: value for k, value in settings.items() if k != key}
    config = preset.changed(config, settings)
    _check(config)
    preset.fit_batch(config, look.num_examples, settings)
    if "batch_size" not in settings and machine.platform != "cpu":
        whole = config.batch_size // machine.devices * machine.devices
        config.batch_size = max(whole, machine.devices)
    steps = config_lib.total_steps(config, max(1, look.num_examples // config.batch_size))
    if "target.tau_base" not in settings:
        tau, schedule = config.target.tau_base, config.target.tau_schedule
        fitting = target_decay.fitting_decay(schedule, steps)
        config.target.tau_base = fitting if schedule == "constant" else min(tau, fitting)
    _fit_intervals(config, steps, settings)
    if "accum_steps" not in settings:
        config.accum_steps = _accum_steps(config, machine)
    return Plan(config, _lines(config, "" if "encoder.name" in settings else why, look, steps))


def describe(plan: Plan, look: Look, machine: Machine, name: str) -> list[str]:
    """Lines about images, machine and plan."""
    damaged = f"; {look.unreadable} of them cannot be decoded" if look.unreadable else ""
    lines = [
        f"{name}: {look.num_examples} images, the shorter side mostly {look.side} pixels "
        f"({look.smallest} to {look.largest}; from a sample of {look.sampled + look.unreadable}"
        f"{damaged})",
        f"{machine}",
    ]
    lines += [
        f"  {name:10} {value}" + (f" ({why})" if why else "") for name, value, why in plan.lines
    ]
    return [*lines, "Change a setting with --config.KEY=VALUE; --write_config=FILE.py writes all."]


def _check(config: ConfigDict) -> None:
    """Raises ConfigError for what no run could use, before anything is computed from it."""
    known = config.copy_and_resolve_references()
    known.data.source = known.data.source or config_lib.UNKNOWN_SOURCE
    resolve(known)


def _preset_name(look: Look, machine: Machine) -> tuple[str, str]:
    """The preset to start from, and why."""
    is_small = look.side <= SMALL_SIDE
    if machine.platform == "cpu":
        why = "ends in minutes without a GPU"
        return ("cifar10_small" if is_small else "folder_small"), why
    if is_small:
        return "cifar10", f"images of up to {SMALL_SIDE} pixels"
    if look.num_examples < MANY:
        return "imagenette", f"fewer than {MANY} images"
    return "folder", f"{MANY} images or more"


def fit_images(config: ConfigDict, look: Look, settings: dict[str, Any]) -> None:
    """Sets channels, mean and standard deviation, and an image size that is not far above theirs.

    Where `settings` start from given weights, mean and standard deviation stay as they are.
    """
    if settings.get("init.encoder"):  # weights take the channels and colours of their own images
        config.data.channels = len(config.views.mean)
    else:
        config.data.channels = 1 if look.is_gray else len(look.mean)
        config.views.mean = look.mean[: config.data.channels]
        config.views.std = look.std[: config.data.channels]
    is_small = look.side <= SMALL_SIDE
    fitting = look.side if is_small else look.side // SIZE_STEP * SIZE_STEP
    config.data.image_size = min(config.data.image_size, fitting)


def _fit_machine(config: ConfigDict, look: Look, machine: Machine) -> None:
    """Sets the length, and what suits the machine."""
    if machine.platform == "cpu":
        config.epochs, config.steps, config.target.tau_schedule = 0, CPU_STEPS, "constant"
        return
    config.dtype = "bfloat16"
    epochs = round(SEEN / look.num_examples)
    config.epochs, config.steps = int(np.clip(epochs, FEWEST_EPOCHS, MOST_EPOCHS)), 0
    batch_size = min(config.batch_size, look.num_examples)
    if config.epochs * (look.num_examples // batch_size) < FEWEST_STEPS:
        config.epochs, config.steps = 0, FEWEST_STEPS


def _fit_intervals(config: ConfigDict, steps: int, settings: dict[str, Any]) -> None:
    """Evaluates and saves at least EVALUATIONS times."""
    for key in ("checkpoint.every_steps", "evaluation.every_steps"):
        if key not in settings:
            tree.put(config, key, min(tree.get(config, key), max(1, steps // EVALUATIONS)))


def _accum_steps(config: ConfigDict, machine: Machine) -> int:
    """The fewest micro-batches that fit into the memory of the devices, as far as it is known."""
    size = BYTES_PER_EXAMPLE.get(config.encoder.name)
    if machine.memory is None or size is None:
        return config.accum_steps
    side = config.data.image_size * {"cifar": 4, "strided": 2}.get(config.encoder.get("stem"), 1)
    size *= (side / 224) ** 2 * (2 if config.dtype == "float32" else 1)
    most = MEMORY_SHARE * machine.memory * machine.devices / size
    smallest = max(MIN_BATCH_SIZE, machine.devices)
    accum_steps = 1
    while config.batch_size / accum_steps > most and (
        config.batch_size % (2 * accum_steps * smallest) == 0
    ):
        accum_steps *= 2
    return accum_steps


def _lines(config: ConfigDict, why: str, look: Look, steps: int) -> list[tuple[str, str, str]]:
    epochs = steps * config.batch_size / look.num_examples
    rate = config.optimizer.base_learning_rate
    if rate is None:
        rate = config_lib.OPTIMIZER_DEFAULTS[config.optimizer.name]["base_learning_rate"]
    parts = f" in {config.accum_steps} parts" if config.accum_steps > 1 else ""
    moments = [" ".join(f"{x:.2f}" for x in config.views[key]) for key in ("mean", "std")]
    width = config.encoder.get("width_multiplier")
    encoder = config.encoder.name + (f", {width:g} x the width" if width not in (None, 1) else "")
    few = "no more than there are images" if 2 * config.batch_size > look.num_examples else ""
    memory = "as many as fit into memory at a time" if parts else few
    target = config.target
    renewals = target_decay.renewals(target.tau_base, target.tau_schedule, steps)
    return [
        ("encoder", encoder, why),
        ("image size", f"{config.data.image_size} pixels", f"the images have {look.side}"),
        ("colours", f"mean {moments[0]}, std {moments[1]}", "gray" if look.is_gray else ""),
        ("batch", f"{config.batch_size} images{parts}", memory),
        ("length", f"{steps} steps, {epochs:.0f} epochs", ""),
        ("optimizer", f"{config.optimizer.name}, learning rate {rate:g} for 256 images", ""),
        (
            "target",
            f"tau {target.tau_base:.4g}",
            f"the run replaces the target network {renewals:.0f} times",
        ),
    ]
