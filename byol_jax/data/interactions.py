"""Interactions of users and items as a source, from a CSV file with a header.

Each line is one interaction, such as a purchase or a rating; all count the same. Of each user who
has at least three, the last by time is the split "test" and the one before "val"; all others are
"train" (leave-last-out). Without a column of times the order of the file is that of time. An
interaction that occurs again is left out.
"""

import csv
import functools
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from byol_jax.data.indexed import IndexedSource
from byol_jax.errors import DataError

SPLITS = ("train", "val", "test")
LEAST = 3  # interactions of a user of whom two are held out


class Table(NamedTuple):
    """All interactions of a file."""

    users: tuple[str, ...]  # by number, in the order of the file
    items: tuple[str, ...]
    splits: dict[str, np.ndarray]  # of a name in SPLITS: int32 (n, 2), numbers of user and item
    repeated: int  # interactions that were left out
    digest: str  # of the file


class Graph(NamedTuple):
    """Neighbours of nodes of one side: of node i `degrees[i]` ends from `starts[i]` on."""

    starts: np.ndarray  # int64 (nodes,)
    degrees: np.ndarray  # int64 (nodes,)
    ends: np.ndarray  # int32 (edges,), nodes of the other side


def graph(pairs: np.ndarray, side: int, nodes: int) -> Graph:
    """The neighbours of users (side 0) or items (side 1) by interactions, integers (n, 2)."""
    order = np.argsort(pairs[:, side], kind="stable")
    degrees = np.bincount(pairs[:, side], minlength=nodes)
    return Graph(np.cumsum(degrees) - degrees, degrees, pairs[order, 1 - side].astype(np.int32))


class InteractionSource(IndexedSource):
    """The interactions of one split.

    An example is a dictionary of "user" and "item": a node, which has "id", int32 (), and if there
    are walks, "walks", int32 (walks, length), and "weights", float32 (walks, length): see
    `models.LightGCN`. Walks are along training interactions, whatever the split.

    Attributes:
      users: their ids, as the file has them, by number.
      items: likewise.
      pairs: of the split: int32 (N, 2), numbers of user and item.
      splits: likewise, of each split.
      seen: of the splits before this one.
      walks: from each node.
      walk_length: steps of each walk.
    """

    def __init__(self, name: str, table: Table, split: str, walks: int = 0, length: int = 0):
        """Keeps the interactions of a split; `walks` of `length` steps belong to each node.

        Raises:
          DataError: the split holds no interactions.
        """
        self.users, self.items = table.users, table.items
        self.pairs = table.splits[split]
        self.splits = table.splits
        before = [table.splits[other] for other in SPLITS[: SPLITS.index(split)]]
        self.seen = np.concatenate([np.zeros((0, 2), np.int32), *before])
        super().__init__(name, np.full(len(self.pairs), -1), None)
        if table.repeated:
            self.warnings.append(f"{name}: {table.repeated} interactions occur again: left out.")
        self.walks, self.walk_length, self._digest = walks, length, table.digest

    @functools.cached_property
    def _graphs(self) -> list[Graph]:
        """Those of users and of items, which only walks need."""
        sizes = len(self.users), len(self.items)
        return [graph(self.splits["train"], side, nodes) for side, nodes in enumerate(sizes)]

    def fingerprint(self):  # noqa: D102 (see Source)
        return self._digest

    def describe(self, index):  # noqa: D102 (see Source)
        user, item = self.pairs[index]
        return f"{self.name}: user {self.users[user]}, item {self.items[item]}"

    def load(self, indices):  # noqa: D102 (see IndexedSource)
        return self.load_random(indices, [(int(index),) for index in indices])

    def load_random(self, indices, seeds):  # noqa: D102 (see IndexedSource)
        pairs = self.pairs[indices]
        return {
            "user": self.nodes("user", pairs[:, 0], [(*seed, 0) for seed in seeds]),
            "item": self.nodes("item", pairs[:, 1], [(*seed, 1) for seed in seeds]),
        }

    def nodes(
        self, side: str, numbers: np.ndarray, seeds: Sequence[tuple[int, ...]], times: int = 1
    ) -> dict[str, np.ndarray]:
        """Users or items with their walks.

        Args:
          side: "user" or "item".
          numbers: integers (n,).
          seeds: of the walks of each, n.
          times: a factor of the number of walks.
        """
        found = {"id": numbers.astype(np.int32)}
        if not self.walks:
            return found
        shape = (self.walks * times, self.walk_length)
        random = np.stack([np.random.default_rng(seed).random(shape) for seed in seeds])
        here = 0 if side == "user" else 1
        start = self._graphs[here].degrees[numbers][:, None]
        at = np.broadcast_to(numbers[:, None], random.shape[:2])
        walks, weights = np.zeros(random.shape, np.int32), np.zeros(random.shape, np.float32)
        for step in range(self.walk_length):
            of, to = self._graphs[(here + step) % 2], self._graphs[(here + step + 1) % 2]
            # A node without training interactions has no neighbours, and its walks no weight.
            chosen = of.starts[at] + (random[..., step] * of.degrees[at]).astype(np.int64)
            at = of.ends[np.minimum(chosen, len(of.ends) - 1)]
            walks[..., step] = at
            weights[..., step] = np.sqrt(start / to.degrees[at])
        return found | {"walks": walks, "weights": weights}


def read_table(path: str, columns: Sequence[str]) -> Table:
    """The interactions of a CSV file.

    Args:
      path: of the file.
      columns: names of the columns of users and items, and of times (numbers) if there are any.

    Raises:
      DataError: the file cannot be read, or lacks a column or a value.
    """
    file = Path(path).expanduser()
    try:
        content = file.read_bytes()
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        header = [name.strip() for name in next(lines, [])]
        numbered = [(lines.line_num, row) for row in lines if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no CSV file in UTF-8"
        raise DataError(f"{path} cannot be read ({reason}): check config.data.source.") from error
    for column in columns:
        if column not in header:
            raise DataError(
                f"{path} has no column {column!r}; it has {', '.join(header) or 'none'}: name "
                "those of users, items and, if there are any, times by "
                "--config.data.columns=USER,ITEM,TIME."
            )
    wanted = [header.index(column) for column in columns]
    rows = [row for _, row in numbered]
    for number, row in numbered:
        if len(row) <= max(wanted) or not all(row[column].strip() for column in wanted):
            raise DataError(f"{path}: line {number} lacks one of {', '.join(columns)}.")
    users, user_numbers = _numbered([row[wanted[0]].strip() for row in rows])
    items, item_numbers = _numbered([row[wanted[1]].strip() for row in rows])
    pairs = np.stack([user_numbers, item_numbers], axis=1)
    order = np.arange(len(pairs))
    if len(columns) > 2:
        times = _times(path, columns[2], [row[wanted[2]] for row in rows])
        order = np.argsort(times, kind="stable")
    _, first = np.unique(pairs[order], axis=0, return_index=True)
    kept = pairs[order][np.sort(first)]
    splits = _leave_last_out(kept, len(users))
    digest = hashlib.sha256(content).hexdigest()
    return Table(users, items, splits, len(pairs) - len(kept), digest)


def _numbered(values: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different values in the order of their first occurrence, and the number of each."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(value, len(numbers)) for value in values]
    return tuple(numbers), np.array(found, np.int32)


def _times(path: str, column: str, values: list[str]) -> np.ndarray:
    try:
        times = np.array([float(value) for value in values])
    except ValueError as error:
        raise DataError(
            f"{path}: column {column!r} must hold numbers ({error}): write times as seconds, or "
            "sort the rows by time and leave the column out of config.data.columns."
        ) from None
    if not np.isfinite(times).all():
        raise DataError(f"{path}: column {column!r} has NaN or infinity.")
    return times


def _leave_last_out(pairs: np.ndarray, users: int) -> dict[str, np.ndarray]:
    """The splits of interactions in order of time."""
    order = np.argsort(pairs[:, 0], kind="stable")  # by user, and of each by time
    counts = np.bincount(pairs[:, 0], minlength=users)
    of_user = pairs[order, 0]
    to_end = np.cumsum(counts)[of_user] - np.arange(len(pairs))  # 1 for the last one
    is_long = counts[of_user] >= LEAST
    held_out = {"test": is_long & (to_end == 1), "val": is_long & (to_end == 2)}
    held_out["train"] = ~(held_out["test"] | held_out["val"])
    return {split: pairs[np.sort(order[held_out[split]])] for split in SPLITS}
