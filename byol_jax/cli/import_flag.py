"""The flag --import=MODULE,...: modules of the user's own that hold the encoders of a run.

A run names its encoder in config.json, which may come from somebody else: naming imports nothing.
"""

from absl import flags

flags.disclaim_key_flags()  # --help of a command lists it as the command's own


def define() -> flags.FlagHolder:
    """Defines the flag; its value is a list of names."""
    return flags.DEFINE_list(
        "import", [], "Modules to import, separated by commas: where a run has an encoder of yours."
    )


def apply(holder: flags.FlagHolder) -> None:
    """Imports the modules; raises ConfigError for one that cannot be imported."""
    from byol_jax.runs import user_code  # late: it imports JAX

    for module in holder.value:
        user_code.load(f"--import={module}", f"{module}:")
