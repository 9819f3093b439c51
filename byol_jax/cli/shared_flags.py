"""Flags that several commands have: CPU devices, baselines, images that cannot be decoded."""

from absl import flags

flags.disclaim_key_flags()  # --help of a command lists them as the command's own


def define_cpu_devices() -> flags.FlagHolder:
    """Defines --cpu_devices of a command that has no batch to divide."""
    return flags.DEFINE_integer(
        "cpu_devices",
        None,
        "Devices that JAX divides the CPU into; by default one for each core, at most 16.",
        lower_bound=1,
    )


def use_cpu_devices(holder: flags.FlagHolder) -> None:
    """Makes them, before JAX starts; raises ConfigError if it has another number."""
    from byol_jax import backend  # late: it imports JAX

    backend.use_cpu_devices(holder.value or min(backend.cores(), backend.MAX_CPU_DEVICES))
    if holder.value:
        backend.check_cpu_devices(holder.value)


def define_baselines(default: list[str]) -> flags.FlagHolder:
    """Defines --baselines; its value is a list of names."""
    holder = flags.DEFINE_list(
        "baselines", default, "What to compare with: random, pixels, both or none."
    )
    flags.register_validator(
        "baselines",
        lambda names: names == ["none"] or {"random", "pixels"}.issuperset(names),
        "name random, pixels, both or none.",
    )
    return holder


def define_on_decode_error() -> flags.FlagHolder:
    """Defines --on_decode_error of a command that has a run, whose setting is the default."""
    return flags.DEFINE_enum(
        "on_decode_error",
        None,
        ["error", "skip"],
        "What to do about images that cannot be decoded; as in the run by default.",
    )
