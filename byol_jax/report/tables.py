"""Tables with a row for each run, in which the best number of a column is marked."""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """A number as text."""

    text: str  # "" where there is none
    is_best: bool = False


class Row(NamedTuple):
    """The numbers of a run, or of a baseline."""

    name: str
    run: int | None  # its number; None for a baseline
    cells: list[Cell]


class Table(NamedTuple):
    """Numbers of several runs."""

    caption: str
    titles: list[str]  # of the columns
    rows: list[Row]


def table(
    caption: str,
    numbers: dict[tuple[str, int | None], dict[str, str]],
    *,
    higher: set[str],
    lower: set[str] = frozenset(),
    order: Sequence[str] = (),
) -> Table:
    """A table of numbers that are given as text.

    Args:
      caption: of the table.
      numbers: by name and number of the run, and by title of the column.
      higher: titles of columns in which the highest number is best. What looks equal is equally
        good. Nothing is best if all are equal or one run is alone; baselines do not count.
      lower: likewise the lowest.
      order: of the columns, as far as it matters; columns without numbers are left out.
    """
    found = dict.fromkeys(title for row in numbers.values() for title in row)
    titles = [title for title in dict.fromkeys([*order, *found]) if title in found]
    best = {}
    for title in titles:
        of_runs = [row.get(title, "") for (_, run), row in numbers.items() if run is not None]
        values = [number for number in map(value, of_runs) if number is not None]
        if len(set(values)) > 1 and title in higher | lower:
            best[title] = max(values) if title in higher else min(values)
    rows = [
        Row(
            name,
            run,
            [
                Cell(text, run is not None and title in best and value(text) == best[title])
                for title in titles
                for text in [row.get(title, "")]
            ],
        )
        for (name, run), row in numbers.items()
    ]
    return Table(caption, titles, rows)


def value(text: str) -> float | None:
    """The number that a text begins with, such as "54.8%" or "27.0% +-4.7"; None if none."""
    found = re.match(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", text.replace(",", ""))
    return float(found[0]) if found else None
