"""The table of results, and the page in the docs that holds it."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from .processes import ROOT
from .tally import Tally

PACKAGES = ("jax", "flax", "orbax-checkpoint", "tensorflow-cpu", "tensorflow")
# The part of the page between these two lines is replaced.
BEGIN, END = "<!-- the table: ./run.sh faults --output=docs/faults.md -->\n", "<!-- its end -->\n"


def table(tallies: Sequence[Tally]) -> str:
    """A line for each fault, in Markdown."""
    rows = [
        ("Fault", "Tried", "Survived", "Weights equal", "Message (an example)"),
        ("---",) * 5,
    ]
    for tally in tallies:
        message = f"not tried: {tally.untried}" if tally.untried else tally.message
        rows.append((tally.fault, tally.tried, tally.survived, tally.equal, message))
    total = (sum(getattr(t, key) for t in tallies) for key in ("tried", "survived", "equal"))
    rows.append(("**all**", *total, ""))
    lines = (" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def facts(seconds: float, seed: int) -> str:
    """The machine and the versions that made the table."""
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return (
        f"{seconds / 60:.1f} minutes on {os.cpu_count()} CPU cores ({platform.system()}, "
        f"{platform.machine()}), seed {seed}; {', '.join(versions)}."
    )


def write(path: Path, table: str, facts: str) -> None:
    """Puts the table and its facts into the page."""
    path = ROOT / path
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table}\n\n{facts}\n\n{END}{after}", encoding="utf-8")
