"""The page of all commands and their flags, from what `byol-jax COMMAND --help` prints."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from byol_jax.cli.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


class Flag(NamedTuple):
    """A flag, as --help describes it."""

    name: str
    text: str
    default: str  # empty if there is none


def page() -> str:
    """Markdown: a section for each command, with its description and a table of its flags."""
    parts = ["# Commands\n\nWhat `byol-jax COMMAND --help` prints, for each command."]
    for name, (_, summary) in COMMANDS.items():
        text, flags = parse(help_of(name))
        rows = [
            f"| `{f.name}` | {_cell(f.text)} | {f.default and f'`{f.default}`'} |" for f in flags
        ]
        table = "\n".join(["| flag | what | default |", "|---|---|---|", *rows])
        parts.append(f"## {name}\n\nTo {summary}.\n\n```text\n{text}\n```\n\n{table}")
    return "\n\n".join(parts) + "\n"


def help_of(name: str) -> str:
    """What a command prints for --help."""
    return subprocess.run(
        [sys.executable, "-m", "byol_jax.cli", name, "--help"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout


def parse(text: str) -> tuple[str, list[Flag]]:
    """The description in a help text, and its flags."""
    description, _, definitions = text.partition("\nflags:\n")
    flags = []
    for part in re.split(r"^  (?=--)", definitions, flags=re.M)[1:]:
        name, _, rest = " ".join(part.split()).partition(": ")
        default = re.search(r" ?\(default: '(.*?)'\)", rest)
        if default:
            rest = rest.replace(default[0], "")
        value = default[1] if default and default[1] not in ("None", "") else ""
        flags.append(Flag(name, rest.strip(), value))
    return description.strip(), flags


def _cell(text: str) -> str:
    """Plain text in a cell of a Markdown table."""
    return re.sub(r"([|<>*_\[\]`])", r"\\\1", text)
