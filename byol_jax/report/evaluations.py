"""The results in RUN/eval/*.json as tables."""

import json
from typing import Any, NamedTuple

from byol_jax.evaluate.table import cells
from byol_jax.runs import paths


class Table(NamedTuple):
    """A table of one protocol."""

    file: str  # its name, without .json
    about: str  # the protocol, and on what
    step: int  # of the checkpoint
    titles: list[str]  # of the columns
    rows: dict[str, list[str]]  # by encoder; "" where it has no such number

    @property
    def caption(self) -> str:
        """What the table is about."""
        return f"{self.about}, step {self.step:,}"


def tables(folder: paths.AnyPath) -> tuple[list[Table], list[str]]:
    """The results of `byol-jax evaluate` and `byol-jax transfer` in a folder.

    Returns:
      Tables in the order of the names of files; and a line for each file that holds no such result.
    """
    found, skipped = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found += list(_tables(path.stem, json.loads(path.read_text())))
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            skipped.append(f"{path.name} holds no result that can be shown ({error!r}).")
    return found, skipped


def _tables(name: str, record: dict[str, Any]) -> list[Table]:
    step = record["step"]
    if "data_sets" in record:
        return [
            _table(name, f"{name}: {data}", step, one["details"])
            for data, one in record["data_sets"].items()
        ]
    data = record.get("data", record.get("train_data", ""))
    count = record.get("test_examples", record.get("train_examples"))
    images = f", {count:,} images" if count else ""
    on = f" on {data}" if data else ""
    return [_table(name, f"{record['protocol']}{on}{images}", step, record["details"])]


def _table(file: str, about: str, step: int, details: dict[str, dict[str, Any]]) -> Table:
    rows = {name: dict(cells(result)) for name, result in details.items()}
    titles = list(dict.fromkeys(title for row in rows.values() for title in row))
    filled = {name: [row.get(title, "") for title in titles] for name, row in rows.items()}
    return Table(file, about, step, titles, filled)
