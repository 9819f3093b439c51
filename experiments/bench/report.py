"""Results of a part: tables and facts about the machine, printed as Markdown, saved as JSON."""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from byol_jax import backend
from byol_jax.errors import UserError
from experiments.bench.measure import Spread

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-cpu", "tensorflow"),
    *("torch", "torchvision", "lightly", "pillow"),
)
Cell = str | float | Spread | None  # None: not measured

# Runs in its own process, because asking JAX for its devices reserves their memory.
DEVICES = """
import json, jax
device = jax.devices()[0]
print(json.dumps({
    "kind": device.device_kind, "platform": device.platform, "count": jax.device_count()
}))
"""


class Column(NamedTuple):
    """The header of a column, and the format of its cells."""

    name: str
    form: str  # text, number, ratio, share, seconds or mebibytes


@dataclass
class Table:
    """Rows of cells; a cell that was not measured is None and printed empty."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Adds a row.

        Raises:
          ValueError: the number of cells is not that of the columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns.")
        self.rows.append(list(cells))

    def markdown(self) -> str:
        """The table in Markdown, aligned for a terminal."""
        lines = [[column.name for column in self.columns]]
        lines += [
            [written(cell, column.form) for cell, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        is_text = [column.form == "text" for column in self.columns]

        def line(cells: list[str]) -> str:
            padded = [
                cell.ljust(width) if text else cell.rjust(width)
                for cell, width, text in zip(cells, widths, is_text, strict=True)
            ]
            return f"| {' | '.join(padded)} |"

        rule = [
            "-" * width if text else "-" * (width - 1) + ":"
            for width, text in zip(widths, is_text, strict=True)
        ]
        return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])


@dataclass
class Report:
    """One part of the bench on one machine.

    Attributes:
      part: its name, as on the command line.
      tables: the measurements.
      notes: remarks, mostly on what was not measured and why.
      facts: command, date, seconds, device, processor, cores, versions.
    """

    part: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """Tables, notes and facts in Markdown."""
        blocks = [f"**{table.title}**\n\n{table.markdown()}" for table in self.tables]
        if self.notes:
            blocks.append("\n".join(f"- {note}" for note in self.notes))
        if self.facts:
            blocks.append(format_facts(self.facts))
        return "\n\n".join(blocks)


def written(cell: Cell, form: str) -> str:
    """A cell as text; a spread as its median, with minimum and maximum in brackets."""
    if cell is None:
        return ""
    if form == "text":
        return str(cell).replace("|", "\\|")
    if isinstance(cell, Spread):
        median, low, high = (written(value, form) for value in cell)
        return median if low == high else f"{median} ({low} to {high})"
    if form == "share":
        return f"{cell:.1%}"
    if form == "ratio":
        return f"{cell:.2f}"
    if form == "mebibytes":
        return f"{cell / 2**20:,.1f}"
    unit = " s" if form == "seconds" else ""
    digits = 0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 2 if abs(cell) >= 1 else 3
    return f"{cell:,.{digits}f}{unit}"


@functools.cache
def facts() -> dict[str, Any]:
    """The machine and the versions; to be called before this process uses a JAX device."""
    found = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise UserError(f"JAX finds no device: {found.stderr.strip().splitlines()[-1]}")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    arguments = shlex.join(sys.argv[1:]).removeprefix("--part=")
    return {
        "command": f"byol-jax bench {arguments}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": json.loads(found.stdout.splitlines()[-1]),
        "processor": backend.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
    }


def format_facts(facts: dict[str, Any]) -> str:
    """The facts as one paragraph."""
    device = facts["device"]
    where = f"{facts['cores']} cores of {facts['processor']}"
    if device["platform"] != "cpu":
        where = f"{device['count']} {device['kind']}, {where}"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"`{facts['command']}` on {facts['date']}, {facts['seconds']:.0f} seconds: {where}; "
        f"{versions}."
    )


def save(report: Report, path: Path) -> None:
    """Writes a report as JSON.

    Raises:
      UserError: the file cannot be written.
    """
    tables = [
        {
            "title": table.title,
            "columns": [column._asdict() for column in table.columns],
            "rows": [
                [cell._asdict() if isinstance(cell, Spread) else cell for cell in row]
                for row in table.rows
            ],
        }
        for table in report.tables
    ]
    content = {"part": report.part, **report.facts, "tables": tables, "notes": report.notes}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error.strerror}.") from error


def check_writable(path: Path) -> None:
    """Makes the folder of a file; raises UserError if that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error.strerror}.") from error


def load(path: Path) -> Report:
    """Reads a report that `save` wrote.

    Raises:
      UserError: the file is not a report.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tables = [
            Table(
                table["title"],
                [Column(**column) for column in table["columns"]],
                [
                    [Spread(**cell) if isinstance(cell, dict) else cell for cell in row]
                    for row in table["rows"]
                ],
            )
            for table in content.pop("tables")
        ]
        return Report(content.pop("part"), tables, content.pop("notes"), content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} was not written by --output: measure it again.") from error
