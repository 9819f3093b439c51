"""The data that a config names: its sources, and their batches."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, data
from byol_jax.errors import DataError
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds


def open_split(config: ConfigDict, split: str) -> data.Source:
    """A split of the config's source.

    Raises:
      DataError: it cannot be opened, or the config is of an imported run, which names no data.
    """
    if config.data.source == config_lib.UNKNOWN_SOURCE:
        raise DataError(
            "This run was imported and does not record its training data: name images, such as "
            "--data=folder:PATH or --data=tfds:NAME."
        )
    return kinds.of(config).open_split(config, split)


def open_sources(config: ConfigDict) -> tuple[data.Source, data.Source | None]:
    """The training examples, and the held-out ones for kNN if both have labels."""
    source = open_split(config, config.data.train_split)
    return source, open_test(config, source)


def open_test(config: ConfigDict, source: data.Source) -> data.Source | None:
    """The held-out examples for kNN, if they and the training examples have labels."""
    split = config.data.test_split if config.evaluation.every_steps else ""
    if source.num_classes is None or not split:
        return None
    return data.match_classes(source, open_split(config, split))


def train_batches(
    config: ConfigDict,
    source: data.Source,
    start_step: int,
    total_steps: int,
    on_decode_error: Callable[[int, str], None] | None = None,
) -> Iterator[byol.Batch]:
    """This process's rows of the batches from `start_step` to `total_steps`, on its devices.

    With `on_decode_error`, which receives the step and a message, examples that cannot be decoded
    are replaced; without it they raise DataError.
    """
    kind = kinds.of(config)
    return kind.train_batches(config, source, start_step, total_steps, on_decode_error)


def eval_batch_size(config: ConfigDict) -> int:
    """Examples of a process's batch in evaluation: for each device as in training, at most 256."""
    share = config_lib.micro_batch_size(config) // jax.process_count()
    return min(share, 256 * jax.local_device_count())


def eval_batches(
    config: ConfigDict,
    source: data.Source,
    *,
    limit: int | None = None,
    on_decode_error: Callable[[str], None] | None = None,
) -> Iterator[tuple[byol.Tree, np.ndarray | None]]:
    """Examples without augmentation, and labels; see `data.eval_batches`.

    With `on_decode_error`, which receives a message, examples that cannot be decoded are left out;
    without it they raise DataError. Without a limit it yields all examples.
    """
    report = on_decode_error and (lambda _, message: on_decode_error(message))
    return kinds.of(config).eval_batches(config, source, eval_batch_size(config), limit, report)
