"""How every command starts and ends: flags, one-line errors, exit codes."""

import contextlib
import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from absl import app, flags, logging

from byol_jax.errors import UserError

EXTRAS = {  # packages that a plain install lacks, and the extra that has them
    **dict.fromkeys(("PIL", "jinja2", "matplotlib", "orbax", "plotly"), "train"),
    **dict.fromkeys(("sklearn", "tensorboard", "tqdm"), "train"),
    **dict.fromkeys(("tensorflow", "tensorflow_datasets"), "train"),
    "pyarrow": "export",
    **dict.fromkeys(("soundfile", "soxr"), "audio"),
    "implicit": "recommendation",
    "av": "video",
    "tokenizers": "text",
    **dict.fromkeys(("tifffile", "imagecodecs"), "tiff"),
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def run(main: Callable[[], int | None], arguments: str = "") -> None:
    """Parses the flags and runs `main`; a user's mistake ends in a one-line error.

    `arguments` are flags that may be given by their position, as a usage line writes them: with
    "RUN IMAGE...", `search runs/mine a.jpg b.jpg` is `search --run=runs/mine --image=a.jpg
    --image=b.jpg`. Those in brackets, such as "[FOLDER]", may be left out. They are strings, and
    the last may be a `DEFINE_multi_string` with three dots.

    Exit codes: 0 done, or stopped and saved on a signal (or then --stopped_exit_code); 1 the input
    cannot be used, or another process of the run was lost; 2 a flag is wrong; 130 interrupted.
    """
    # Orbax logs every file that it writes; what a user needs to know is printed by our own code.
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(lambda _: _guarded(main), flags_parser=partial(_parse, arguments))
    except SystemExit as error:
        # Without Python's finalization. Before 3.14 it ends threads that return from C++, such as
        # TensorStore's, which aborts the process although all its work is done.
        with contextlib.suppress(BrokenPipeError):  # as in `byol-jax evaluate ... | head -1`
            sys.stdout.flush()
            sys.stderr.flush()
        if not isinstance(error.code, int | None):  # a text, which Python prints
            raise
        os._exit(error.code or 0)


def _parse(arguments: str, argv: Sequence[str]) -> list[str]:
    if {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"} & set(argv):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head -1` ends quietly
        print(_help())
        sys.exit(0)
    try:
        _check_names(argv)
        flags.FLAGS.set_gnu_getopt()  # flags may follow arguments
        rest = flags.FLAGS(list(argv))
        _set_by_position(arguments.split(), rest[1:])
    # The flags of ml_collections raise many types: for a key that does not exist, a value of the
    # wrong type, and more.
    except Exception as error:
        _exit(format_error(error), 2)
    return rest


def _set_by_position(arguments: Sequence[str], values: list[str]) -> None:
    """Gives the values to the flags that `arguments` names, if they are not given by name.

    Raises flags.Error if a value is missing, or one too many.
    """
    for argument in arguments:
        name = argument.strip("[].")
        flag = flags.FLAGS[name.lower()]
        if flag.using_default_value and values:
            count = len(values) if "..." in argument else 1
            flag.value = values[:count] if "..." in argument else values[0]
            values = values[count:]
        if not flag.value and not argument.startswith("["):
            raise flags.Error(f"{name} is missing; --help describes the arguments.")
    if values:
        raise flags.Error(f"unexpected argument {values[0]!r}; flags are written --name=value")


def _help() -> str:
    """The docstring and the flags of the command that runs."""
    _, _, definitions = flags.FLAGS.main_module_help().strip().partition("\n")
    return f"{sys.modules['__main__'].__doc__.strip()}\n\nflags:\n{definitions}"


def _check_names(argv: Sequence[str]) -> None:
    """Refuses unknown flags before --config is loaded, which takes as long as importing JAX."""
    for argument in argv[1:]:
        if argument == "--":
            return
        found = re.match(r"--([a-z][\w-]*)(=|$)", argument)
        if found and not {found[1], found[1].removeprefix("no")} & set(flags.FLAGS):
            suggestions = difflib.get_close_matches(found[1], flags.FLAGS)
            raise flags.UnrecognizedFlagError(found[1], suggestions=suggestions)


def format_error(error: Exception) -> str:
    """The text of an error that was raised while flags were read, on one line."""
    if error.args and isinstance(error.args[0], KeyError):  # a config key that does not exist
        text = " ".join(error.args[0].args[0].replace("'\n", "'. ").split())
        # A locked config lists all its keys and values.
        return "no such config key: " + re.sub(r" and cannot be added.*\}\"", ".", text)
    text = " ".join(str(error).split())
    missing = re.match(r"flag (--\w+)=None: .* must have a value other than None", text)
    if missing:
        return f"{missing.group(1)} is missing; --help describes the flags."
    return text if isinstance(error, flags.Error | UserError) else f"{type(error).__name__}: {text}"


def _guarded(main: Callable[[], int | None]) -> int | None:
    """Runs `main`, which may return an exit code."""
    try:
        code = main()
    except UserError as error:
        _exit(str(error), 1)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except Exception as error:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
            _exit(f"{package} is not installed: pip install 'byol_jax[{EXTRAS[package]}]'", 1)
        if _is_one_of_several():
            traceback.print_exc()
            _shutdown_distributed(failed=True)
            sys.exit(1)
        raise
    _shutdown_distributed(failed=False)  # whatever the exit code: this is an orderly end
    return code


def _exit(text: str, code: int) -> None:
    print(f"error: {text}", file=sys.stderr)
    _shutdown_distributed(failed=True)
    sys.exit(code)


def _shutdown_distributed(failed: bool) -> None:
    """Reports to the other processes of the run, if there are any, that this one ends."""
    if _is_one_of_several():
        sys.modules["byol_jax.runs.processes"].shutdown(failed)


def _is_one_of_several() -> bool:
    # Not imported from here: wrong flags are answered without waiting for JAX.
    processes = sys.modules.get("byol_jax.runs.processes")
    return processes is not None and processes.joined()
