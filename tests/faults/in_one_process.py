"""Trains several runs to their ends, one after the other, in one process.

    python -m tests.faults.in_one_process WORKDIR ...

Each goes on as its config.json says, and a line of JSON tells what it said and the error that ended
it, if one did. A start of the program would cost more than the few steps that are left.
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
        said, error = io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(said):
                loop.train(run_lib.read(Path(workdir)).config, Path(workdir))
        except UserError as mistake:
            error = str(mistake)
        except Exception:
            error = traceback.format_exc()
        print(json.dumps({"said": said.getvalue().splitlines(), "error": error}), flush=True)


if __name__ == "__main__":
    main()
