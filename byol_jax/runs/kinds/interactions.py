"""Users and items: a user is one view of an interaction, and the item the other (BUIR, Lee et al.
2021, arXiv 2105.06323).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, config_dict

from byol_jax import byol
from byol_jax.byol import Tree
from byol_jax.data.interactions import SPLITS, InteractionSource, read_table
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs.kinds import drawing
from byol_jax.runs.kinds.indexed_kind import IndexedKind

PREFIX = "csv:"
SIDES = ("user", "item")


@dataclasses.dataclass(frozen=True)
class Policy:
    """Takes an interaction apart."""

    users: tuple[str, ...]
    items: tuple[str, ...]

    def __call__(self, key: jax.Array, example: Tree) -> tuple[Tree, Tree]:
        """A node of each side -> that of the user, and that of the item."""
        del key
        return {"user": example["user"]}, {"item": example["item"]}

    def preprocess(self, examples: Tree) -> Tree:
        """Nothing."""
        return examples


class Interactions(IndexedKind):
    """Nodes: see `data.interactions.InteractionSource`."""

    name = "interactions"
    unit = "interactions"
    input_meaning = "ids of users and items, as the file has them"
    source_type = InteractionSource
    views_are_inputs = False  # a user and an item are no two views of one input

    def add_settings(self, config):  # noqa: D102 (see Kind, here and below)
        config.data.columns = "user,item,time"  # of the file; without a third one, its order counts
        # Random walks from each user and item along training interactions, and their steps: the
        # layers of LightGCN. 0: an embedding is of the user or item alone.
        config.data.walks = 0
        config.data.walk_length = 0
        config.data.user_ids = config_dict.placeholder(tuple)  # their ids by number; from the data
        config.data.item_ids = config_dict.placeholder(tuple)

    def check(self, config, encoder):  # noqa: D102
        del encoder
        columns = _columns(config)
        if len(columns) not in (2, 3) or len({*columns}) < len(columns):
            raise ConfigError(
                f"config.data.columns={config.data.columns} must name the columns of users, items "
                "and, if there are any, times: USER,ITEM or USER,ITEM,TIME."
            )
        for key, path in config.init.items():
            if path:
                raise ConfigError(
                    f"config.init.{key}={path} is not for users and items, whose embeddings belong "
                    "to those of one run: leave it out."
                )
        if bool(config.data.walks) != bool(config.data.walk_length):
            raise ConfigError(
                f"config.data.walks={config.data.walks} and config.data.walk_length="
                f"{config.data.walk_length}: set both, or neither."
            )

    def check_encoder(self, config, encoder):
        """Raises ValueError for another one than of users and items."""
        del config
        if not {"users", "items"} <= {field.name for field in dataclasses.fields(encoder)}:
            raise ValueError(
                "name must be lightgcn, or of a class with the fields users and items, how many "
                "there are."
            )

    def fit_to(self, config: ConfigDict, source: InteractionSource) -> None:  # noqa: D102
        super().check_source(config, source)
        if (source.walks, source.walk_length) != (config.data.walks, config.data.walk_length):
            raise ConfigError(
                f"{source.name} has {source.walks} walks of {source.walk_length} steps: set "
                "config.data.walks and config.data.walk_length to these."
            )
        config.data.user_ids, config.data.item_ids = source.users, source.items

    def check_source(self, config, source):
        """Raises DataError unless a source has the users and items of the run."""
        super().check_source(config, source)
        if (source.users, source.items) != (
            tuple(config.data.user_ids),
            tuple(config.data.item_ids),
        ):
            raise DataError(
                f"{source.name} has other users or items than the run, which has "
                f"{len(config.data.user_ids)} and {len(config.data.item_ids)}: name its own file."
            )

    def sizes(self, record):
        """How many users and items there are."""
        return {f"{side}s": len(record[f"{side}_ids"]) for side in SIDES}

    def view_shapes(self, config):
        """None: a view holds numbers of rows."""
        del config
        return []

    def describe(self, config):  # noqa: D102
        text = f"{len(config.data.user_ids)} users and {len(config.data.item_ids)} items"
        if not config.data.walks:
            return text
        return f"{text}, {config.data.walks} walks of {config.data.walk_length} steps"

    def open_split(self, config: ConfigDict, split: str) -> InteractionSource:  # noqa: D102
        spec = config.data.source
        if not spec.startswith(PREFIX):
            raise ConfigError(
                f"config.data.source={spec} must be csv:FILE: a preset of users and items reads a "
                "table with a row for each interaction."
            )
        if split not in SPLITS:
            raise ConfigError(f"{spec} has no split {split!r}: name one of {', '.join(SPLITS)}.")
        table = read_table(spec.removeprefix(PREFIX), _columns(config))
        walks = config.data.walks, config.data.walk_length
        source = InteractionSource(f"{spec}/{split}", table, split, *walks)
        if config.data.user_ids is not None:
            self.check_source(config, source)
        return source

    def check_same_inputs(self, given, config, record):  # noqa: D102
        here = self.encoder_record(config)
        for key in ("user_ids", "item_ids", "walks", "walk_length"):
            if record[key] != here[key]:
                raise ConfigError(
                    f"{given} was trained with another config.data.{key} than the run: name an "
                    "encoder of the same data."
                )

    def example_batch(self, config: ConfigDict) -> byol.Batch:  # noqa: D102
        spec = self.blank(self.encoder_record(config), 2)
        examples = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), spec)
        return byol.Batch(examples, None, np.arange(2, dtype=np.int32))

    def policy(self, config: ConfigDict) -> Policy:  # noqa: D102
        return Policy(config.data.user_ids, config.data.item_ids)

    def pictures(
        self, policy: Policy, examples: Tree, views: Sequence[Tree]
    ) -> dict[str, np.ndarray]:
        """The ids of user and item, and the first walks from each, as text."""
        nodes = {side: view[side] for side, view in zip(SIDES, views, strict=True)}
        nodes = jax.tree.map(np.asarray, nodes)
        return drawing.texts({side: _lines(policy, side, node) for side, node in nodes.items()})

    def encoder_record(self, config: ConfigDict) -> dict[str, Any]:  # noqa: D102
        chosen = config.data
        record = {f"{side}_ids": list(chosen[f"{side}_ids"] or ()) for side in SIDES}
        return {"kind": self.name} | record | {key: chosen[key] for key in ("walks", "walk_length")}

    def config_of_record(self, record: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        numbers = {key: record[key] for key in ("walks", "walk_length")}
        ids = {f"{side}_ids": tuple(map(str, record[f"{side}_ids"])) for side in SIDES}
        return {"data": numbers | ids}

    def check_inputs(self, record, module, name, given):
        """Returns nodes by side, from ids, or from nodes: see `InteractionSource.nodes`."""
        del module
        if not isinstance(given, Mapping) or not given or not given.keys() <= set(SIDES):
            raise DataError(f'{name} takes {{"user": ids}}, {{"item": ids}} or both.')
        found = {side: _node(record, name, side, value) for side, value in given.items()}
        if len({len(node["id"]) for node in found.values()}) > 1:
            raise DataError(f"{name} was given different numbers of users and items.")
        return found

    def preprocess(self, record, examples):  # noqa: D102
        del record
        return examples

    def blank(self, record, n):  # noqa: D102
        def array(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((n, *shape), dtype)

        node, walks = {"id": array(np.int32)}, (record["walks"], record["walk_length"])
        if record["walks"]:
            node |= {"walks": array(np.int32, *walks), "weights": array(np.float32, *walks)}
        return dict.fromkeys(SIDES, node)


def _columns(config: ConfigDict) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, config.data.columns.split(","))))


def _node(record: dict[str, Any], name: str, side: str, given: Any) -> dict[str, np.ndarray]:
    count = len(record[f"{side}_ids"])
    if isinstance(given, Mapping):
        node = {key: np.asarray(array) for key, array in given.items()}
        wanted = {"id", "walks", "weights"} if record["walks"] else {"id"}
        if node.keys() != wanted or not all(0 <= i < count for i in node["id"]):
            raise DataError(
                f"{name}: a {side} has {', '.join(sorted(wanted))}, with id from 0 to {count - 1}."
            )
        return node
    if isinstance(given, str) or not np.iterable(given):
        raise DataError(f'{name} takes lists of ids, {{"{side}": [ID, ...]}}.')
    if record["walks"]:
        raise DataError(
            f"{name}: this encoder needs the neighbours of a {side}, which ids alone do not have: "
            "give nodes of data.interactions.InteractionSource."
        )
    numbers = {known: number for number, known in enumerate(record[f"{side}_ids"])}
    ids = [str(one) for one in given]
    for one in ids:
        if one not in numbers:
            raise DataError(f"{name}: the {side} {one!r} is not in the training data.")
    return {"id": np.array([numbers[one] for one in ids], np.int32)}


def _lines(policy: Policy, side: str, node: dict[str, np.ndarray]) -> list[str]:
    """For each example, its id and the nodes along its first walks."""
    ids = {"user": policy.users, "item": policy.items}
    other = {"user": "item", "item": "user"}
    texts = []
    for row, number in enumerate(node["id"]):
        lines = [f"{side} {ids[side][number]}"]
        for walk in node["walks"][row, :4] if "walks" in node else ():
            sides = (side if step % 2 else other[side] for step in range(len(walk)))
            lines.append(" > ".join(ids[at][i] for at, i in zip(sides, walk, strict=True)))
        texts.append("\n".join(lines))
    return texts
