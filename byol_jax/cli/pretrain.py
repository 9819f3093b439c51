"""Pre-trains an encoder with BYOL.

byol-jax pretrain FOLDER [--workdir=DIR] [--epochs=N] [--image_size=N] [--encoder=NAME] [--dry_run]
byol-jax pretrain --config=NAME --workdir=DIR [--config.key=value ...]

The first chooses settings that fit the images and this machine, and prints them; --write_config
writes them into a file to edit. The second takes a preset, or such a file.

The same command again resumes from the last checkpoint. On several machines start one process on
each; TPU pods, Slurm and Kubernetes are detected, elsewhere add

    --coordinator_address=HOST:PORT --num_processes=N --process_id=0   (1, 2, ... on the others)
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

from byol_jax.cli import app, config_flag, import_flag, shared_flags
from byol_jax.errors import ConfigError, describe

REPORTED = 2000  # images of the page at the end of a run: seconds

CONFIG = config_flag.define()
SOURCE = flags.DEFINE_string(
    "folder", None, "A folder of images, or another source, as --config.data.source names it."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, for everything it writes; by default runs/NAME of FOLDER."
)
EPOCHS = flags.DEFINE_integer(
    "epochs", None, "How often each image is seen: --config.epochs, and no steps.", lower_bound=1
)
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels: --config.data.image_size.")
ENCODER = flags.DEFINE_string("encoder", None, "--config.encoder.name.")
EXTEND_EPOCHS = flags.DEFINE_integer(
    "extend_epochs",
    None,
    "Train a longer run than the one in --workdir, from where its learning rate began to fall, in "
    "the folder WORKDIR-extended. Its --config.optimizer.schedule has to be constant.",
    lower_bound=1,
)
REPORT = flags.DEFINE_bool(
    "report",
    True,
    "At the end of a run on images, write report.html, a page about it (byol-jax report).",
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Train a few steps, print how long the run and how large its memory would be."
)
WRITE_CONFIG = flags.DEFINE_string(
    "write_config", None, "Write the settings into this file, for --config, and do not train."
)
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


def main() -> int:
    """Trains; returns the exit code."""
    name = _workdir()
    for key in ("epochs", "steps"):
        if EPOCHS.value and config_flag.overrides().get(key):
            raise ConfigError(f"--epochs and --config.{key} are two lengths: give one of them.")
    # Imported here, so that wrong flags are answered at once.
    from byol_jax import backend
    from byol_jax.backend import compile_cache
    from byol_jax.runs import paths, processes
    from byol_jax.train import dry_run, extend, loop, preset

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
        workdir = paths.path(name)
        if EXTEND_EPOCHS.value:
            if paths.is_local(workdir):
                workdir = workdir.resolve()
            config = extend.longer(workdir, EXTEND_EPOCHS.value)
            config = preset.changed(config, config_flag.overrides() | _given())
            workdir = workdir.with_name(f"{workdir.name}-extended")
        else:
            config = _config(workdir)
        _check_workdir(workdir, config.data.source)
        if WRITE_CONFIG.value:
            preset.write(config, Path(WRITE_CONFIG.value))
            print(f"Written to {WRITE_CONFIG.value}: train with --config={WRITE_CONFIG.value}.")
        if DRY_RUN.value:
            print(*dry_run.estimate(config, CPU_DEVICES.value), sep="\n")
        if WRITE_CONFIG.value or DRY_RUN.value:
            return 0
        is_complete = loop.train(config, workdir, cpu_devices=CPU_DEVICES.value)
        if is_complete and REPORT.value:
            _report(workdir, config)
    return 0 if is_complete else STOPPED.value


def _report(workdir: Any, config: Any) -> None:
    """Writes the page about a run on images, if there is none; a failure ends no run."""
    import jax

    from byol_jax.runs import kinds

    is_of_images = config.data.kind == kinds.Images.name
    if not is_of_images or jax.process_count() > 1 or (workdir / "report.html").exists():
        return
    try:
        from byol_jax import report

        page = report.write(workdir, images=REPORTED)
        print(f"A page about the run: {page} (byol-jax report {workdir} shows more images)")
    except Exception as error:  # the run itself is complete
        print(f"No page about the run: {describe(error)}")


def _config(workdir: Any) -> Any:
    """The settings: those of a preset or of a plan, with what the flags change."""
    from byol_jax.train import plan, preset

    settings = _given()
    if config_flag.is_auto():
        settings = config_flag.overrides() | settings
        return plan.planned(None, workdir, settings, CPU_DEVICES.value)
    return preset.changed(config_flag.value(CONFIG), settings)


def _given() -> dict[str, Any]:
    """The settings that short flags and FOLDER change, by dotted key."""
    from byol_jax.data import open as open_lib

    short = {"data.image_size": IMAGE_SIZE.value, "encoder.name": ENCODER.value}
    short |= {"data.source": SOURCE.value and open_lib.spec(SOURCE.value)}
    settings = {key: value for key, value in short.items() if value is not None}
    if EPOCHS.value:
        settings |= {"epochs": EPOCHS.value, "steps": 0}
    return settings


def _check_workdir(workdir: Any, source: str) -> None:
    """Raises ConfigError for a run within its folder of images, whose pictures it would read."""
    kind, _, folder = source.partition(":")
    inside, root = os.path.realpath(workdir), os.path.realpath(os.path.expanduser(folder))
    if kind != "folder" or not Path(inside).is_relative_to(root):
        return
    if not any(part.startswith(".") for part in Path(inside).relative_to(root).parts):
        raise ConfigError(
            f"--workdir={workdir} is within the folder of images, which would then hold pictures "
            "of the run too: name another, such as --workdir=../run."
        )


def _workdir() -> str:
    """The folder of the run; by default runs/NAME, where FOLDER is PATH/NAME."""
    is_auto = config_flag.is_auto()
    if EXTEND_EPOCHS.value and WORKDIR.value:
        return WORKDIR.value
    if is_auto and not (SOURCE.value or CONFIG.value.data.source):
        raise ConfigError("name the images: byol-jax pretrain FOLDER.")
    if WORKDIR.value:
        return WORKDIR.value
    if not is_auto or not SOURCE.value:
        raise ConfigError("--workdir is missing: name a folder for what the run writes.")
    if os.path.isdir(SOURCE.value):
        return f"runs/{Path(SOURCE.value).resolve().name or 'images'}"
    from byol_jax.runs import paths

    return f"runs/{paths.file_name(SOURCE.value)}"


if __name__ == "__main__":
    config_flag.auto_by_default(sys.argv)
    app.run(main, "[FOLDER]")
