"""Values of a config by dotted key, such as "optimizer.name"."""

from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict


def get(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key; the config itself at the empty one."""
    for part in filter(None, key.split(".")):
        config = config[part]
    return config


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Sets the value at a dotted key."""
    section, _, leaf = key.rpartition(".")
    get(config, section)[leaf] = value


def flat(tree: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The leaves of a config, or of a dictionary like it, by dotted key."""
    return flatten_dict(tree.to_dict() if isinstance(tree, ConfigDict) else tree, sep=".")
