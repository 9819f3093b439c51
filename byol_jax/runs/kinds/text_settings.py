"""What kinds with texts have in common: the vocabulary, and texts as a user gives them."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict, config_dict

from byol_jax.data import wordpiece
from byol_jax.data.text import TextSource, first_tokens
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs import paths
from byol_jax.runs.limits import limit

AT_LEAST = limit(1, "data.length") | limit(100, "data.vocabulary_size")
AT_MOST = (
    limit(2**14, "data.length")
    | limit(10**6, "data.vocabulary_size")
    | limit(1, "views.*.span_share")
    | limit(2**14, "views.*.shuffle_distance")
)


def add(config: ConfigDict) -> None:
    """Adds the settings of tokens, with their defaults."""
    config.data.length = 64  # tokens of an example
    config.data.vocabulary_size = 8000  # tokens, at most; learned from the training texts
    config.data.vocabulary = config_dict.placeholder(tuple)  # None: from the data


def check(config: ConfigDict) -> None:
    """Raises ConfigError for a vocabulary that is none."""
    tokens = config.data.vocabulary
    if tokens is None:
        return
    begins = tuple(tokens[:2]) == (wordpiece.PAD, wordpiece.UNKNOWN)
    are_strings = all(isinstance(token, str) for token in tokens)
    if not (begins and are_strings and len({*tokens}) == len(tokens)):
        raise ConfigError(
            f"config.data.vocabulary must be different tokens, the first {wordpiece.PAD} "
            f"and {wordpiece.UNKNOWN}: leave it out, to learn one from the data."
        )


def fit_to(config: ConfigDict, source: TextSource) -> None:
    """Fills in the vocabulary: of what the run starts from, or else of the training texts."""
    if config.data.vocabulary is None:
        config.data.vocabulary = _vocabulary_of(config.init)
    if config.data.vocabulary is None:
        skip = config.data.on_decode_error == "skip"
        config.data.vocabulary = source.vocabulary(config.data.vocabulary_size, skip)


def check_same(given: str, here: dict[str, Any], record: dict[str, Any]) -> None:
    """Raises ConfigError, which begins with `given`, if an encoder takes other tokens.

    Args:
      given: how the user gave the encoder.
      here: the `encoder_record` of the run.
      record: that of the encoder.
    """
    for key in ("length", "vocabulary"):
        if record[key] != here[key]:
            raise ConfigError(
                f"{given} has another {key} than the run: name an encoder of the same, such as one "
                "of another checkpoint."
            )


def _vocabulary_of(init: ConfigDict) -> tuple[str, ...] | None:
    """The vocabulary of what a run starts from; None if that has none, or is nothing."""
    path = init.state or init.encoder or init.target_encoder
    try:
        record = paths.read_record(paths.path(path)) if path else {}
        of_run = record.get("config", {}).get("data", {})
        found = record.get("vocabulary", of_run.get("vocabulary"))
    except (AttributeError, OSError, ValueError):  # reported where it is opened
        return None
    return None if found is None else tuple(found)


def num_tokens(record: dict[str, Any]) -> int:
    """How many tokens there are; 1 before the vocabulary is known, for checks of shapes."""
    return max(1, len(record["vocabulary"]))


def checked(record: dict[str, Any], name: str, given: Any) -> np.ndarray:
    """Int32 (n, length), from n strings that a user gave to a method `name`; or DataError."""
    is_list = np.iterable(given) and not isinstance(given, str)
    if not is_list or not all(isinstance(text, str) for text in given):
        raise DataError(f"{name} takes a list of strings.")
    texts = list(map(str, given))
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} was given a string that is no Unicode ({error}).") from error
    return first_tokens(tuple(record["vocabulary"]), texts, record["length"])


def log_counts(tokens: np.ndarray, size: int) -> np.ndarray:
    """log(1 + how often a text has a token), for each of `size` tokens, and of length 1."""
    counts = np.stack([np.bincount(row[row != 0], minlength=size) for row in tokens])
    logs = np.log1p(counts.astype(np.float32))
    return logs / np.maximum(np.linalg.norm(logs, axis=1, keepdims=True), 1e-12)


def words(vocabulary: tuple[str, ...], tokens: np.ndarray) -> str:
    """A text of tokens, with the pieces of a word together."""
    joined = " ".join(vocabulary[token] for token in tokens if token)
    return joined.replace(f" {wordpiece.CONTINUES}", "")
