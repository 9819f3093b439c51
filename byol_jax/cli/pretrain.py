"""Pre-trains an encoder with BYOL.

python -m byol_jax.cli.pretrain --config=byol_jax/presets/cifar10.py --workdir=DIR \
    [--config.key=value ...]

Started again with the same command, it goes on from the last checkpoint. On several machines start
one process on each; TPU pods, Slurm and Kubernetes are found, elsewhere add

    --coordinator_address=HOST:PORT --num_processes=N --process_id=0   (1, 2, ... on the others)
"""

import contextlib

from absl import flags
from ml_collections import ConfigDict, config_flags

from byol_jax.cli import app
from byol_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of byol_jax/presets/, or one like it.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps everything it makes.")
ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "Of several processes: where process 0 is reached, HOST:PORT."
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
STOPPED = flags.DEFINE_integer(
    "stopped_exit_code",
    0,
    "Exit code after a stop by a signal, for schedulers that start a job again on a certain one.",
    lower_bound=0,
    upper_bound=255,
)
CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs for the next start; empty: none. By default byol_jax in "
    "the user's folder for caches. JAX_COMPILATION_CACHE_DIR has precedence.",
)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    """Trains as the flags say; returns the exit code."""
    if not isinstance(CONFIG.value, ConfigDict):
        # What stands there instead raises, with a traceback, at the first look at it.
        path = flags.FLAGS["config"].config_filename
        raise UserError(f"--config={path} cannot be loaded: is it a file with a get_config()?")
    # Here, so that a wrong flag is answered at once.
    from byol_jax.runs import paths, processes
    from byol_jax.train import compile_cache, loop

    with contextlib.ExitStack() as stack:
        if CACHE.value != "":
            folder = CACHE.value or compile_cache.default_folder()
            note = stack.enter_context(compile_cache.use_cache(folder))
            if note:
                print(note)
        processes.join(ADDRESS.value, PROCESSES.value, PROCESS.value)
        is_complete = loop.train(CONFIG.value, paths.path(WORKDIR.value))
    return 0 if is_complete else STOPPED.value


if __name__ == "__main__":
    app.run(main)
