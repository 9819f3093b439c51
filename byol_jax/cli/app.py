"""How every entry point starts, and how it says no: one sentence, and an exit code other than 0."""

import re
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from byol_jax.errors import UserError


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags and runs `main`; a user's mistake ends in a sentence, not a traceback.

    Exit codes: 0 done, or stopped and saved on a signal; 1 the input cannot be used, or another
    process of the run was lost; 2 a flag is wrong; 130 interrupted with nothing to save.
    """
    # Orbax tells every file it writes; what matters to a user is printed by this program itself.
    logging.set_verbosity(logging.ERROR)
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
    # A config that is not there or cannot be run, a key that does not exist, a value of the wrong
    # type: the flags of ml_collections raise whatever they met.
    except Exception as error:
        _leave(_words(error), 2)
    if rest[1:]:
        _leave(f"unexpected argument {rest[1]!r}; flags are written --name=value", 2)
    return rest


def _words(error: Exception) -> str:
    """The text of an error raised while flags were read, on one line."""
    if error.args and isinstance(error.args[0], KeyError):  # what a misspelt config key ends in
        text = " ".join(error.args[0].args[0].replace("'\n", "'. ").split())
        # Of a locked tree, all its keys and values are recited.
        return "no such config key: " + re.sub(r" and cannot be added.*\}\"", ".", text)
    lines = str(error).strip().splitlines() or [""]
    # Where a config file fails, the text is its whole traceback, the reason last.
    text = lines[-1] if "Traceback" in str(error) else " ".join(" ".join(lines).split())
    missing = re.match(r"flag (--\w+)=None: .* must have a value other than None", text)
    if missing:
        return f"{missing.group(1)} is missing; --help tells what it is for."
    if "get_config() takes 0 positional arguments" in text:
        return "--config names a file that takes nothing after a colon: leave that out"
    # The last line of a traceback names the type of the error with its module.
    ours = f"{UserError.__module__}.{UserError.__name__}: "
    if isinstance(error, flags.Error | UserError) or text.startswith(ours):
        return text.removeprefix(ours)
    return f"{type(error).__name__}: {text}"


def _guarded(main: Callable[[], int | None]) -> int | None:
    """Runs `main`, which may return an exit code."""
    try:
        code = main()
    except UserError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except Exception:
        if _is_one_of_several():
            traceback.print_exc()
            _part(1)
        raise
    _part(0)  # whatever the exit code: this is an orderly end
    return code


def _leave(sentence: str, code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    _part(code)
    sys.exit(code)


def _part(code: int) -> None:
    """Tells the other processes of a run, if there are any, that this one goes."""
    if _is_one_of_several():
        sys.modules["byol_jax.runs.processes"].shutdown(code)


def _is_one_of_several() -> bool:
    # Not imported from here: wrong flags are answered without waiting for JAX.
    return (
        "byol_jax.runs.processes" in sys.modules and sys.modules["byol_jax.runs.processes"].joined()
    )
