"""Measures speed and memory on this machine, next to other implementations and to its limits.

byol-jax bench input|step|end_to_end|startup|memory [--output=FILE.json]
byol-jax bench all [--output=DIR]                     all of these, each in its own process
byol-jax bench race --minutes=10 [--output=FILE.json] byol_jax and PyTorch, for the same time
byol-jax bench page [--results=DIR] [--page=FILE.md]  puts the results into the page, as tables

`byol-jax bench PART --help` lists the flags of a part.
"""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from byol_jax.cli import app
from byol_jax.errors import UserError
from experiments.bench import peers, settings

# The first argument, and the flags of each.
FLAGS = {
    "input": ("against", "data", "seconds", "output"),
    "step": ("against", "network", "batch_size", "dtype", "seconds", "output"),
    "end_to_end": ("data", "output"),
    "startup": ("output",),
    "memory": ("network", "batch_size", "dtype", "output"),
    "race": ("images", "data_dir", "minutes", "output"),
    "all": ("against", "data", "output"),
    "page": ("results", "page"),
}
PARTS = ("input", "step", "end_to_end", "startup", "memory")
PEERS = {"input": tuple(peers.LOADERS), "step": tuple(peers.STEPS)}


def define(part: str) -> None:
    """Defines the flags of a part, and no others: a flag that would be ignored is refused."""
    flags.DEFINE_enum("part", None, list(FLAGS), "What to measure; the first argument.")
    flags.mark_flag_as_required("part")
    known = PEERS.get(part, PEERS["input"] + PEERS["step"])
    definitions: dict[str, Callable[[], Any]] = {
        "against": lambda: define_list("against", (*known, "none"), "Peers; by default all."),
        "network": lambda: define_list("network", settings.NETWORKS, "Networks."),
        "batch_size": lambda: define_list("batch_size", None, "Images per step."),
        "dtype": lambda: define_list("dtype", settings.DTYPES, "Computation dtypes."),
        "data": lambda: flags.DEFINE_string(
            "data", "", "folder:PATH of JPEG photographs; by default synthetic ones."
        ),
        "images": lambda: flags.DEFINE_string(
            "images", "tfds:cifar10", "Labelled images of one size: tfds:NAME or npz:PATH."
        ),
        "data_dir": lambda: flags.DEFINE_string("data_dir", "", "Where TFDS keeps its data."),
        "minutes": lambda: flags.DEFINE_float(
            "minutes", 10, "Time for each contender.", lower_bound=0
        ),
        "seconds": lambda: flags.DEFINE_float(
            "seconds", 10, "Time for each table, about; at least three rounds.", lower_bound=0
        ),
        "output": lambda: flags.DEFINE_string(
            "output", None, "JSON file to write; with `all` a folder."
        ),
        "results": lambda: flags.DEFINE_string(
            "results", "docs/results/bench", "Folder of the files that --output wrote."
        ),
        "page": lambda: flags.DEFINE_string("page", "docs/performance.md", "Page to update."),
    }
    for name in FLAGS.get(part, ()):
        definitions[name]()


def define_list(name: str, choices: Sequence[str] | None, text: str) -> None:
    """Defines a flag for a list of choices, or of positive integers if `choices` is None."""
    kind = f"A list of: {', '.join(choices)}." if choices else "A list of numbers."
    flags.DEFINE_list(name, [], f"{text} {kind}")

    def check(values: list[str]) -> bool:
        for value in values:
            if choices is None and not (value.isdecimal() and int(value) > 0):
                raise flags.ValidationError(f"{value!r} is not a positive integer.")
            if choices is not None and value not in choices:
                raise flags.ValidationError(f"{value!r} is not one of {', '.join(choices)}.")
        if "none" in values and len(values) > 1:
            raise flags.ValidationError("none excludes other peers.")
        return True

    flags.register_validator(name, check)


def value(name: str) -> Any:
    """The value of a flag; batch sizes as integers."""
    found = flags.FLAGS[name].value
    return [int(size) for size in found] if name == "batch_size" else found


def main() -> None:
    """Measures a part or all, or updates the page."""
    part = flags.FLAGS.part
    if part == "page":
        from experiments.bench import page

        page.write(Path(value("page")), Path(value("results")))
    elif part == "all":
        measure_all()
    else:
        measure(part)


def measure(part: str) -> None:
    """Measures a part; prints the report and writes it to --output."""
    from experiments.bench import report as report_lib

    if value("output"):
        report_lib.check_writable(Path(value("output")))
    start, facts = time.perf_counter(), report_lib.facts()
    arguments = {name: value(name) for name in FLAGS[part] if name != "output" or part == "race"}
    module = importlib.import_module(f"experiments.bench.{part}")
    report = module.run(**arguments)
    report.facts = facts | {"seconds": time.perf_counter() - start}
    print(report.markdown())
    if value("output"):
        report_lib.save(report, Path(value("output")))


def measure_all() -> None:
    """Measures all parts, each in its own process.

    Raises:
      UserError: some parts failed.
    """
    failed = []
    for part in PARTS:
        print(f"\n## {part}\n", flush=True)
        command = [sys.executable, "-m", "experiments.bench", part]
        if "data" in FLAGS[part]:
            command.append(f"--data={value('data')}")
        if "against" in FLAGS[part] and value("against"):
            own = [peer for peer in value("against") if peer in PEERS[part]]
            command.append(f"--against={','.join(own) or 'none'}")
        if value("output"):
            command.append(f"--output={Path(value('output')) / part}.json")
        if subprocess.run(command, check=False).returncode:
            failed.append(part)
    if failed:
        raise UserError(f"{', '.join(failed)} failed; the reasons are above.")


if __name__ == "__main__":
    # JAX would reserve most of the GPU's memory, of which PyTorch needs a part.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    if chosen not in FLAGS and chosen not in ("--help", "-h"):
        print(f"error: the first argument is one of {', '.join(FLAGS)}.", file=sys.stderr)
        sys.exit(2)
    if chosen in FLAGS:
        sys.argv[1] = f"--part={chosen}"
    define(chosen)
    app.run(main)
