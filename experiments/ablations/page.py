"""Puts the results of the tables into docs/ablations.md.

python -m experiments.ablations.page
"""

import json
import statistics
from pathlib import Path
from typing import Any

from experiments.ablations.rows import TABLES, Row
from experiments.bench import page
from experiments.bench.measure import spread
from experiments.bench.report import Column, Table

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "ablations.md", ROOT / "docs" / "results" / "ablations"
COLUMNS = [
    Column("", "text"),
    Column("Flags", "text"),
    Column("Untrained", "share"),
    Column("Logistic", "share"),
    Column("kNN", "share"),
    Column("Loss", "number"),
    Column("Spread", "ratio"),
    Column("Rank", "number"),
    Column("Collapse", "text"),
]


def main() -> None:
    """Fills each place of the page that has results."""
    text = page.replaced(PAGE.read_text(encoding="utf-8"), "table", table_of)
    PAGE.write_text(text, encoding="utf-8")


def table_of(name: str) -> str:
    """The results of a table in Markdown."""
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    table = Table(name, COLUMNS)
    for row in TABLES[name].rows:
        if row.name in results:
            table.add(*cells(row, list(results[row.name].values())))
    return table.markdown()


def cells(row: Row, runs: list[dict[str, Any]]) -> list[Any]:
    """A row of the page from the runs of its seeds: medians, lowest and highest."""
    # The losses of the probe and of the objective are added; the probe's does not compare.
    losses = [run["loss"] - run["probe_loss"] for run in runs]
    untrained = [run["untrained"] for run in runs if "untrained" in run]
    measured = [spread(untrained) if untrained else None]
    measured += [spread([run[key] for run in runs]) for key in ("logistic", "knn")]
    measured += [statistics.median(losses)]
    measured += [
        statistics.median(run[f"projection_{key}"] for run in runs) for key in ("std", "rank")
    ]
    steps = [run["collapsed_at"] for run in runs if run["collapsed_at"] is not None]
    collapse = f"reported at step {min(steps)}" if steps else ""
    if 0 < len(steps) < len(runs):
        collapse += f" ({len(steps)} of {len(runs)} seeds)"
    flags = " ".join(row.flags)
    return [row.what, f"`{flags}`" if flags else "", *measured, collapse]


if __name__ == "__main__":
    main()
