"""Pre-trains an encoder with BYOL.

byol-jax pretrain --config=cifar10 --workdir=DIR [--config.key=value ...]

The same command again resumes from the last checkpoint. On several machines start one process on
each; TPU pods, Slurm and Kubernetes are detected, elsewhere add

    --coordinator_address=HOST:PORT --num_processes=N --process_id=0   (1, 2, ... on the others)
"""

import contextlib

from absl import flags

from byol_jax.cli import app, config_flag, import_flag, shared_flags

CONFIG = config_flag.define()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, for everything it writes.")
ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where there are several processes."
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
STOPPED = shared_flags.define_stopped_exit_code()
CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    None,
    "Devices that JAX divides the CPU into. By default as many as divide the batch into 8 rows or "
    "more each, at most one for each core and 16; with several processes one in each. A resumed "
    "run keeps its number.",
    lower_bound=1,
)
CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder for compiled programs, which the next start reuses; empty for none. By default "
    "byol_jax in the user's cache folder. JAX_COMPILATION_CACHE_DIR has precedence.",
)
IMPORT = import_flag.define()
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    """Trains; returns the exit code."""
    # Imported here, so that wrong flags are answered at once.
    from byol_jax import backend
    from byol_jax.backend import compile_cache
    from byol_jax.runs import paths, processes
    from byol_jax.train import loop

    with contextlib.ExitStack() as stack:
        if CACHE.value != "":
            folder = CACHE.value or compile_cache.default_folder()
            note = stack.enter_context(compile_cache.use_cache(folder))
            if note:
                print(note)
        if CPU_DEVICES.value:
            backend.use_cpu_devices(CPU_DEVICES.value)  # joining other processes starts JAX
        processes.join(ADDRESS.value, PROCESSES.value, PROCESS.value)
        import_flag.apply(IMPORT)
        workdir = paths.path(WORKDIR.value)
        config = config_flag.value(CONFIG)
        is_complete = loop.train(config, workdir, cpu_devices=CPU_DEVICES.value)
    return 0 if is_complete else STOPPED.value


if __name__ == "__main__":
    app.run(main)
