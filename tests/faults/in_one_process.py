"""Trains several runs to their ends, one after the other, in one process.

    python -m tests.faults.in_one_process WORKDIR ...

Each run resumes with its config.json, and one line of JSON reports its output and the error that
ended it, if any. Starting the program for each would take longer than the few steps that are left.
"""

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path

from byol_jax.errors import UserError
from byol_jax.runs import run as run_lib
from byol_jax.train import loop


def main() -> None:
    """Trains in each folder of the command line."""
    for workdir in sys.argv[1:]:
        output, error = io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(output):
                loop.train(run_lib.read(Path(workdir)).config, Path(workdir))
        except UserError as user_error:
            error = str(user_error)
        except Exception:
            error = traceback.format_exc()
        print(json.dumps({"output": output.getvalue().splitlines(), "error": error}), flush=True)


if __name__ == "__main__":
    main()
