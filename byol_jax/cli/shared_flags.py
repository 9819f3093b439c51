"""Flags that several commands have, and what they mean."""

from typing import TYPE_CHECKING, Any

from absl import flags

from byol_jax.errors import ConfigError

if TYPE_CHECKING:  # it imports JAX
    from byol_jax.train.finetune.choices import Recipe

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
        "baselines",
        default,
        "What to compare with: random, pixels (or raw: the examples themselves), both or none.",
    )
    flags.register_validator(
        "baselines",
        lambda names: names == ["none"] or {"random", "pixels", "raw"}.issuperset(names),
        "name random, pixels (or raw: the examples themselves), both or none.",
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


def define_tried(prefix: str = "") -> dict[str, flags.FlagHolder]:
    """Defines the flags of what fine-tuning tries, by the field of a `Recipe`."""
    default = "; by default as in the paper."
    return {
        "learning_rates": flags.DEFINE_list(
            f"{prefix}learning_rates", [], f"For batches of 256; each is tried{default}"
        ),
        "epochs": flags.DEFINE_list(
            f"{prefix}epochs", [], f"Lengths of training; each is tried{default}"
        ),
        "weight_decays": flags.DEFINE_list(
            f"{prefix}weight_decays",
            [],
            f"Each is tried; of transfer, after a division by the learning rate{default}",
        ),
        "batch_size": flags.DEFINE_integer(
            f"{prefix}batch_size", None, f"Images of an update, at most{default}", lower_bound=2
        ),
    }


def recipe(of_paper: "Recipe", tried: dict[str, flags.FlagHolder]) -> "Recipe":
    """A recipe with what these flags give; raises ConfigError for what are no numbers."""
    kinds = {"learning_rates": float, "epochs": int, "weight_decays": float}
    given: dict[str, Any] = {}
    for field, kind in kinds.items():
        holder = tried[field]
        try:
            given[field] = tuple(kind(text) for text in holder.value)
        except ValueError:
            raise ConfigError(
                f"--{holder.name}={','.join(holder.value)} is not a list of numbers such as "
                f"{'30,50' if kind is int else '0.01,0.1'}."
            ) from None
    given["batch_size"] = tried["batch_size"].value
    return of_paper._replace(**{field: value for field, value in given.items() if value})


def check_tried(protocols: list[str], tried: dict[str, flags.FlagHolder]) -> None:
    """Raises ConfigError if a flag of `define_tried` is given, and fine-tuning is no protocol."""
    for holder in tried.values():
        if holder.value and "finetune" not in protocols:
            raise ConfigError(f"--{holder.name} is for --protocol=finetune: leave it out.")


def define_stopped_exit_code() -> flags.FlagHolder:
    """Defines --stopped_exit_code of a command that a signal stops and that resumes."""
    return flags.DEFINE_integer(
        "stopped_exit_code",
        0,
        "Exit code after a stop by a signal, for schedulers that restart a job on a certain code.",
        lower_bound=0,
        upper_bound=255,
    )
