"""The flag --config=NAME, --config=NAME:ARGUMENT or --config=FILE.py.

NAME is a file of byol_jax/presets; ARGUMENT goes to its get_config(). Each setting can be changed
by a flag of its own, --config.key=value. --config=auto stands for a plan (train/plan.py), which the
command makes when it knows the data.
"""

import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from byol_jax import presets
from byol_jax.cli import app
from byol_jax.errors import ConfigError

FOLDER = Path(presets.__file__).parent
AUTO = "auto"

flags.disclaim_key_flags()  # --help of a command lists it as the command's own


def define(**settings: Any) -> flags.FlagHolder:
    """Defines the flag; its value is a locked ConfigDict, or None where the flag is not given."""
    values = settings.get("flag_values", flags.FLAGS)
    help_string = f"{', '.join(names())}, or a FILE.py like them; NAME:ARGUMENT for some."
    holder = config_flags.DEFINE_config_file("config", None, help_string, **settings)
    values["config"].parser = _Parser(settings.get("sys_argv"))
    return holder


def value(holder: flags.FlagHolder) -> ConfigDict:
    """The config, with the settings that the flags changed."""
    from byol_jax.runs import config as config_lib  # late: it imports JAX

    config = holder.value
    config_lib.use_other_encoder(config, flags.FLAGS["config"].parser.preset)
    return config


def is_auto() -> bool:
    """Whether the settings are to be chosen for the data."""
    return flags.FLAGS["config"].parser.name == AUTO


def overrides() -> dict[str, Any]:
    """The settings that flags changed, by dotted key."""
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def auto_by_default(argv: list[str]) -> None:
    """Adds --config=auto to a command line without --config."""
    given = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    if not any(re.fullmatch(r"--?config(=.*)?", argument, re.DOTALL) for argument in given):
        argv.insert(1, f"--config={AUTO}")


def names() -> list[str]:
    """The presets."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


class _Parser(flags.ArgumentParser):
    """Reads the value of the flag; raises ConfigError.

    Args:
      argv: the command line, if that is not `sys.argv`.
    """

    def __init__(self, argv: Sequence[str] | None = None):
        self.argv = argv

    def parse(self, argument: str) -> ConfigDict:
        source, *arguments = argument.split(":", 1)
        path = FOLDER / f"{source}.py" if source in names() else Path(source)
        if not path.is_file():
            raise ConfigError(
                "there is no such file."
                if path.suffix == ".py"
                else f"the presets are {', '.join(names())}; a file of your own ends in .py."
            )
        spec = importlib.util.spec_from_file_location("config_file", path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            get_config = module.get_config
        except Exception as error:
            raise ConfigError(f"{path}: {app.format_error(error)}") from error
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError as error:
            problem = "takes nothing after a colon" if arguments else "needs a :VALUE"
            raise ConfigError(f"{source} {problem}.") from error
        try:
            config = get_config(*arguments)
        except Exception as error:
            raise ConfigError(app.format_error(error)) from error
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"get_config() of {path} returns no ConfigDict.")
        try:
            _use_own_encoders(config, self.argv)
        except ConfigError as error:
            raise flags.Error(str(error)) from error  # which absl does not ascribe to --config
        self.name, self.preset = source, config.copy_and_resolve_references()
        return config.lock()

    def flag_type(self) -> str:
        return "preset or file"


def _use_own_encoders(config: ConfigDict, argv: Sequence[str] | None) -> None:
    """Imports the user's own encoders of a command line: only then are their settings known."""
    from byol_jax.runs import config as config_lib  # late: it imports JAX

    argv = flags.FLAGS.read_flags_from_files(list(argv or sys.argv), force_gnu=False)
    pattern = r"--?(?:no)?config\.((?:target\.|text_)?encoder\.\w+)(?:=(.*))?"
    found = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if given := re.fullmatch(pattern, argument, re.DOTALL):
            found[given[1]] = following if given[2] is None else given[2]
    config_lib.use_own_encoders(config, found)
