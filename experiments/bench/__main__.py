"""Measures how fast byol_jax is on this machine, beside others and beside the machine's own bounds.

byol-jax bench input|step|end_to_end|startup|memory [--output=FILE.json]
byol-jax bench all [--output=DIR]      each of them, in a process of its own
byol-jax bench page [--results=DIR] [--page=FILE.md]     what --output wrote, as tables

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

# Each word, and the flags that go with it.
FLAGS = {
    "input": ("against", "data", "seconds", "output"),
    "step": ("against", "network", "batch_size", "dtype", "seconds", "output"),
    "end_to_end": ("data", "output"),
    "startup": ("output",),
    "memory": ("network", "batch_size", "dtype", "output"),
    "all": ("against", "data", "output"),
    "page": ("results", "page"),
}
PARTS = ("input", "step", "end_to_end", "startup", "memory")
PEERS = {"input": tuple(peers.LOADERS), "step": tuple(peers.STEPS)}


def define(part: str) -> None:
    """Defines the flags of a word, and no others: none is taken and then not read."""
    flags.DEFINE_enum("part", None, list(FLAGS), "What to measure: the first word.")
    flags.mark_flag_as_required("part")
    known = PEERS.get(part, PEERS["input"] + PEERS["step"])
    definitions: dict[str, Callable[[], Any]] = {
        "against": lambda: some("against", (*known, "none"), "Peers; all that suit by default."),
        "network": lambda: some("network", settings.NETWORKS, "Networks."),
        "batch_size": lambda: some("batch_size", None, "Images in a step."),
        "dtype": lambda: some("dtype", settings.DTYPES, "What the networks compute in."),
        "data": lambda: flags.DEFINE_string(
            "data", "", "folder:PATH of photographs, all JPEG; drawn ones by default."
        ),
        "seconds": lambda: flags.DEFINE_float(
            "seconds", 10, "For the rounds of each table, about; three at least.", lower_bound=0
        ),
        "output": lambda: flags.DEFINE_string(
            "output", None, "The JSON file to write (of `all`: the folder)."
        ),
        "results": lambda: flags.DEFINE_string(
            "results", "docs/results/bench", "The folder of what --output wrote."
        ),
        "page": lambda: flags.DEFINE_string(
            "page", "docs/performance.md", "The page to put it into."
        ),
    }
    for name in FLAGS.get(part, ()):
        definitions[name]()


def some(name: str, choices: Sequence[str] | None, text: str) -> None:
    """Defines a flag with a list of choices, or of whole numbers above 0 where there are none."""
    words = f"{text} A list, of: {', '.join(choices)}." if choices else f"{text} A list of numbers."
    flags.DEFINE_list(name, [], words)

    def check(values: list[str]) -> bool:
        for value in values:
            if choices is None and not (value.isdecimal() and int(value) > 0):
                raise flags.ValidationError(f"{value!r} is no whole number above 0.")
            if choices is not None and value not in choices:
                raise flags.ValidationError(f"{value!r} is not one of {', '.join(choices)}.")
        if "none" in values and len(values) > 1:
            raise flags.ValidationError("none stands alone.")
        return True

    flags.register_validator(name, check)


def value(name: str) -> Any:
    """A flag's value, batch sizes as numbers."""
    found = flags.FLAGS[name].value
    return [int(size) for size in found] if name == "batch_size" else found


def main() -> None:
    """Does what the first word says."""
    part = flags.FLAGS.part
    if part == "page":
        from experiments.bench import page

        page.write(Path(value("page")), Path(value("results")))
    elif part == "all":
        everything()
    else:
        one(part)


def one(part: str) -> None:
    """Measures a part, prints what it found, and writes it."""
    from experiments.bench import report as report_lib

    start, facts = time.perf_counter(), report_lib.facts()
    arguments = {name: value(name) for name in FLAGS[part] if name != "output"}
    module = importlib.import_module(f"experiments.bench.{part}")
    report = module.run(**arguments)
    report.facts = facts | {"seconds": time.perf_counter() - start}
    print(report.markdown())
    if value("output"):
        report_lib.save(report, Path(value("output")))


def everything() -> None:
    """Measures all parts, each in a process of its own.

    Raises:
      UserError: some of them failed.
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
        raise UserError(f"not measured, for the reasons above: {', '.join(failed)}.")


if __name__ == "__main__":
    # PyTorch has to find memory beside JAX, which would take most of a GPU's at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word not in FLAGS and word not in ("--help", "-h"):
        print(f"error: say first what to measure: {', '.join(FLAGS)}.", file=sys.stderr)
        sys.exit(2)
    if word in FLAGS:
        sys.argv[1] = f"--part={word}"
    define(word)
    app.run(main)
