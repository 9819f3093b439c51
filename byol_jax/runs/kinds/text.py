"""Texts: numbers of tokens, and views with fewer words in another order."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol
from byol_jax.augment import text as augment
from byol_jax.byol import Tree
from byol_jax.data.text import TextSource, TokenSource, open_text
from byol_jax.errors import ConfigError
from byol_jax.runs.kinds import drawing, text_settings
from byol_jax.runs.kinds.indexed_kind import IndexedKind, check_encoders

PREFIX = "text:"


class Text(IndexedKind):
    """int32 (length,): numbers of tokens of a WordPiece vocabulary, 0 for padding."""

    name = "text"
    unit = "texts"
    input_meaning = "numbers of tokens of the vocabulary in config.json, then zeros"
    raw_name = "token counts"
    source_type = TextSource
    view_dtype = jnp.int32
    at_least = text_settings.AT_LEAST
    at_most = text_settings.AT_MOST

    def add_settings(self, config):  # noqa: D102 (see Kind, here and below)
        text_settings.add(config)
        view = dataclasses.asdict(augment.View())
        config.views = ConfigDict({"view1": view, "view2": view})

    def check(self, config, encoder):  # noqa: D102
        del encoder
        text_settings.check(config)
        check_encoders(self, config, {"texts": (config.data.length,)}, "choose text_transformer")

    def fit_to(self, config: ConfigDict, source: TextSource) -> None:  # noqa: D102
        self.check_source(config, source)
        text_settings.fit_to(config, source)

    def sizes(self, record: dict[str, Any]) -> dict[str, int]:
        """How many tokens there are."""
        return {"num_tokens": text_settings.num_tokens(record)}

    def view_shapes(self, config):  # noqa: D102
        return [(config.data.length,)]

    def describe(self, config):  # noqa: D102
        return f"{config.data.length} of {len(config.data.vocabulary)} tokens"

    def open_split(self, config: ConfigDict, split: str) -> TextSource:  # noqa: D102
        spec = config.data.source
        if not spec.startswith(PREFIX):
            raise ConfigError(
                f"config.data.source={spec} must be text:PATH: a preset of text reads .txt, .jsonl "
                "and .csv files."
            )
        return open_text(spec.removeprefix(PREFIX), split)

    def examples(self, config: ConfigDict, source: TextSource) -> TokenSource:  # noqa: D102
        return TokenSource(source, tuple(config.data.vocabulary), config.data.length)

    def raw(self, config: ConfigDict, examples: np.ndarray) -> np.ndarray:
        """log(1 + how often a text has a token), for each token, and of length 1."""
        return text_settings.log_counts(examples, len(config.data.vocabulary))

    def example_batch(self, config: ConfigDict) -> byol.Batch:  # noqa: D102
        examples = np.zeros((2, config.data.length), np.int32)
        return byol.Batch(examples, None, np.arange(2, dtype=np.int32))

    def policy(self, config: ConfigDict) -> augment.Policy:  # noqa: D102
        views = (augment.View(**config.views[name]) for name in ("view1", "view2"))
        return augment.Policy(*views, tuple(config.data.vocabulary))

    def as_inputs(self, policy: augment.Policy, views: jax.Array) -> jax.Array:  # noqa: D102
        return views

    def pictures(
        self, policy: augment.Policy, examples: np.ndarray, views: Sequence[Tree]
    ) -> dict[str, np.ndarray]:
        """The words of texts and of both views."""
        rows = {"text": examples} | {f"view {i}": view for i, view in enumerate(views, start=1)}
        return drawing.texts(
            {
                name: [text_settings.words(policy.vocabulary, tokens) for tokens in np.asarray(row)]
                for name, row in rows.items()
            }
        )

    def encoder_record(self, config: ConfigDict) -> dict[str, Any]:  # noqa: D102
        chosen = config.data
        return {
            "kind": self.name,
            "length": chosen.length,
            "vocabulary": list(chosen.vocabulary or ()),
        }

    def config_of_record(self, record: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        vocabulary = record["vocabulary"]
        return {"data": {"length": record["length"], "vocabulary": tuple(vocabulary)}}

    def check_same_inputs(self, given, config, record):  # noqa: D102
        text_settings.check_same(given, self.encoder_record(config), record)

    def check_inputs(self, record, module, name, given):
        """Returns int32 (n, length), from a sequence of n strings."""
        del module
        return text_settings.checked(record, name, given)

    def preprocess(self, record, examples):  # noqa: D102
        del record
        return examples

    def blank(self, record, n):  # noqa: D102
        return jax.ShapeDtypeStruct((n, record["length"]), np.int32)
