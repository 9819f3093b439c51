"""Sources whose examples NumPy loads by index, and their batches; without TensorFlow.

For all kinds of data but images. An example is a pytree of arrays. The order of an epoch is a
function of (seed, epoch), so there is no state to save: any process makes any step, and neither a
resume nor the number of processes changes an example.
"""

import abc
import collections
import concurrent.futures
from collections.abc import Iterator
from typing import Any

import numpy as np

from byol_jax.byol import Batch
from byol_jax.data.source import Source, steps_per_epoch
from byol_jax.errors import ConfigError

Tree = Any  # a pytree of arrays
AHEAD = 2  # batches that are loaded while one is trained on


class IndexedSource(Source):
    """Examples by index: any order costs the same.

    Attributes:
      labels: int32 (N,), -1 without labels.
    """

    def __init__(self, name: str, labels: np.ndarray, class_names: tuple[str, ...] | None):
        """Keeps the attributes. Raises DataError if there are no examples."""
        super().__init__(name, len(labels), class_names)
        self.labels = np.asarray(labels, np.int32)

    @abc.abstractmethod
    def load(self, indices: np.ndarray) -> Tree:
        """The examples at some indices, int64 (n,), with n first in the shape of every array.

        It is called by a thread.
        """


def train_batches(
    source: IndexedSource,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    rows: np.ndarray,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Every example of each epoch once, in random order; an incomplete last batch is left out.

    Args:
      source: where the examples come from.
      batch_size: examples in the global batch, the sum over processes.
      seed: all randomness follows from it.
      num_steps: steps of the complete run.
      rows: integers (n,), ascending: which rows of the global batch to yield.
      start_step: the first step to yield; nothing before it is loaded.

    Yields:
      Steps start_step to num_steps - 1: examples as of `source.load`, labels int32 (n,) or None,
      and positions int32 (n,), the rows.
    """
    epoch_steps = steps_per_epoch(source, batch_size)

    def load(step: int) -> Batch:
        epoch, step_of_epoch = divmod(step, epoch_steps)
        order = np.random.default_rng((seed, epoch)).permutation(source.num_examples)
        chosen = order[step_of_epoch * batch_size + rows]
        labels = None if source.num_classes is None else source.labels[chosen]
        return Batch(source.load(chosen), labels, rows.astype(np.int32))

    def batches() -> Iterator[Batch]:
        with concurrent.futures.ThreadPoolExecutor(AHEAD) as pool:
            pending: collections.deque = collections.deque()
            try:
                for step in range(start_step, num_steps):
                    while len(pending) <= AHEAD and step + len(pending) < num_steps:
                        pending.append(pool.submit(load, step + len(pending)))
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    return batches()


def eval_batches(
    source: IndexedSource, *, batch_size: int, limit: int | None = None
) -> Iterator[tuple[Tree, np.ndarray | None]]:
    """Every example once, in an order that never changes.

    Args:
      source: where the examples come from.
      batch_size: examples in a batch; the last one may have fewer.
      limit: if given, only this many examples, drawn at random but always the same.

    Yields:
      Examples as of `source.load`, and labels, int32 (n,), or None.

    Raises:
      ConfigError: at the call, if an argument is out of its range.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"batch size {batch_size} and limit {limit} must be at least 1.")
    indices = np.arange(source.num_examples)
    if limit is not None and limit < source.num_examples:
        indices = np.random.default_rng(0).permutation(source.num_examples)[:limit]

    def batches() -> Iterator[tuple[Tree, np.ndarray | None]]:
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            labels = None if source.num_classes is None else source.labels[chosen]
            yield source.load(chosen), labels

    return batches()
