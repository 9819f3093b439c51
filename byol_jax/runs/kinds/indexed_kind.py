"""What the kinds have in common whose sources NumPy loads by index."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, data, models, parallel
from byol_jax.byol import Tree
from byol_jax.data import indexed
from byol_jax.errors import ConfigError, describe
from byol_jax.runs import tree
from byol_jax.runs.kinds.kind import Kind, OnDecodeError


class IndexedKind(Kind):
    """Batches of an `indexed.IndexedSource`."""

    def examples(self, config: ConfigDict, source: data.Source) -> indexed.IndexedSource:
        """The examples of a source, if that has them in another form, such as texts."""
        del config
        return source

    def train_batches(
        self,
        config: ConfigDict,
        source: indexed.IndexedSource,
        start_step: int,
        total_steps: int,
        on_decode_error: OnDecodeError,
    ) -> Iterator[byol.Batch]:
        """As `inputs.train_batches`."""
        batches = indexed.train_batches(
            self.examples(config, source),
            batch_size=config.batch_size,
            seed=config.seed,
            num_steps=total_steps,
            start_step=start_step,
            rows=parallel.rows(config.batch_size, config.accum_steps),
            on_decode_error=on_decode_error,
        )
        return (parallel.device_put_batch(batch, config.accum_steps) for batch in batches)

    def eval_batches(
        self,
        config: ConfigDict,
        source: indexed.IndexedSource,
        batch_size: int,
        limit: int | None,
        on_decode_error: OnDecodeError,
    ) -> Iterator[tuple[Tree, np.ndarray | None]]:
        """As of `Kind`."""
        return indexed.eval_batches(
            self.examples(config, source),
            batch_size=batch_size,
            limit=limit,
            on_decode_error=on_decode_error,
        )

    def eval_views(
        self,
        config: ConfigDict,
        source: indexed.IndexedSource,
        views: Any,
        batch_size: int,
        on_decode_error: OnDecodeError,
    ) -> Iterator[tuple[tuple[Tree, ...], np.ndarray | None]]:
        """As of `Kind`: every encoder sees the same."""
        batches = self.eval_batches(config, source, batch_size, None, on_decode_error)
        for examples, labels in batches:
            yield (examples,) * len(views), labels


def arrays_alone(names: Iterable[str]) -> dict[str, Callable[[Tree], Tree]]:
    """For `Kind.parts`: functions from arrays by name to one of them, still by its name."""

    def only(name: str, examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: examples[name]}

    return {name: partial(only, name) for name in names}


def check_encoders(
    kind: Kind,
    config: ConfigDict,
    shapes: dict[str, tuple[int, ...]],
    advice: str,
    sections: Sequence[str] = ("encoder", "target.encoder"),
    dtype: Any = None,
) -> None:
    """Raises ConfigError if an encoder of a config cannot take views.

    Args:
      kind: of the config's data.
      config: of a run.
      shapes: of one example in a view, by what to call it.
      advice: what to choose, the end of the message.
      sections: where the encoders are in the config; an encoder without a name is none.
      dtype: of a view; by default the kind's.
    """
    sizes = kind.sizes(kind.encoder_record(config))
    dtype = dtype or kind.view_dtype
    for section in sections:
        settings = tree.get(config, section)
        for what, shape in shapes.items() if settings.name else ():
            encoder = models.with_fields(models.make_encoder(**settings), **sizes)
            try:
                models.variable_shapes(encoder, jax.ShapeDtypeStruct((2, *shape), dtype))
            except Exception as error:  # whatever the module raises
                raise ConfigError(
                    f"config.{section}.name={settings.name} cannot take {what} of shape {shape} "
                    f"({describe(error)}): {advice}."
                ) from error
