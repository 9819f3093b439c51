"""Sources whose examples NumPy loads by index, and their batches; without TensorFlow.

For all kinds of data but images. An example is a pytree of arrays. The order of an epoch is a
function of (seed, epoch), so there is no state to save: any process makes any step, and neither a
resume nor the number of processes changes an example.
"""

import abc
import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from byol_jax.byol import Batch, Tree
from byol_jax.data.source import Source, steps_per_epoch
from byol_jax.errors import ConfigError, DataError

REPLACEMENTS = 16  # other examples that are tried in place of one that cannot be read
AHEAD = 2  # batches that are loaded while one is trained on,
WORKERS = 4  # by so many threads


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

        It is called by a thread. Raises DataError, which names one that cannot be read.
        """

    def load_random(self, indices: np.ndarray, seeds: Sequence[tuple[int, ...]]) -> Tree:
        """As `load`, for training: with a random part of each example, a function of its seed."""
        del seeds
        return self.load(indices)


def train_batches(
    source: IndexedSource,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    rows: np.ndarray,
    start_step: int = 0,
    on_decode_error: Callable[[int, str], None] | None = None,
) -> Iterator[Batch]:
    """Every example of each epoch once, in random order; an incomplete last batch is left out.

    Args:
      source: where the examples come from.
      batch_size: examples in the global batch, the sum over processes.
      seed: all randomness follows from it.
      num_steps: steps of the complete run.
      rows: integers (n,), ascending: which rows of the global batch to yield.
      start_step: the first step to yield; nothing before it is loaded.
      on_decode_error: if given, an example that cannot be read is replaced by another one (a
        function of seed, epoch and position), and this is called with the number of the update that
        uses it, start_step + 1 for the first, and the error. If None, it raises DataError.

    Yields:
      Steps start_step to num_steps - 1: examples as of `source.load`, labels int32 (n,) or None,
      and positions int32 (n,), the rows.
    """
    epoch_steps = steps_per_epoch(source, batch_size)

    @functools.lru_cache(2)  # batches that are loaded ahead may be of the next epoch
    def order_of(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(source.num_examples)

    def load(step: int) -> tuple[Batch, list[str]]:
        """The batch of a step, and an error for each example that could not be read."""
        epoch, step_of_epoch = divmod(step, epoch_steps)
        positions = step_of_epoch * batch_size + rows
        chosen, seeds = order_of(epoch)[positions], [(seed, epoch, int(i)) for i in positions]
        errors: list[str] = []
        report = on_decode_error and errors.append
        examples, chosen = _load(source, chosen, seeds, report)
        labels = None if source.num_classes is None else source.labels[chosen]
        return Batch(examples, labels, rows.astype(np.int32)), errors

    def batches() -> Iterator[Batch]:
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            pending: collections.deque = collections.deque()
            try:
                for step in range(start_step, num_steps):
                    while len(pending) <= max(AHEAD, WORKERS) and step + len(pending) < num_steps:
                        pending.append(pool.submit(load, step + len(pending)))
                    batch, errors = pending.popleft().result()
                    for error in errors:  # here, and not in a thread that is ahead
                        on_decode_error(step + 1, error)
                    yield batch
            finally:
                pool.shutdown(cancel_futures=True)

    return batches()


def _load(
    source: IndexedSource,
    chosen: np.ndarray,
    seeds: list[tuple[int, ...]],
    report: Callable[[str], None] | None,
) -> tuple[Tree, np.ndarray]:
    """The examples, and their indices, which differ from those chosen where one was replaced."""
    try:
        return source.load_random(chosen, seeds), chosen
    except DataError:
        if report is None:
            raise
    examples, chosen = [], chosen.copy()
    for row, seed in enumerate(seeds):
        others = np.random.default_rng((*seed, REPLACEMENTS + 1)).integers(
            source.num_examples, size=REPLACEMENTS
        )
        for attempt, index in enumerate((chosen[row], *others)):
            # Another seed, too: the random part may be what cannot be read.
            of_attempt = (*seed, attempt) if attempt else seed
            try:
                examples.append(source.load_random(np.array([index]), [of_attempt]))
            except DataError as error:
                report(str(error))
                last = error
            else:
                chosen[row] = index
                break
        else:
            raise DataError(f"{last} Nor can {REPLACEMENTS} others drawn in its place.")
    return _joined(examples), chosen


def eval_batches(
    source: IndexedSource,
    *,
    batch_size: int,
    limit: int | None = None,
    on_decode_error: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[Tree, np.ndarray | None]]:
    """Every example once, in an order that never changes.

    Args:
      source: where the examples come from.
      batch_size: examples in a batch; the last one may have fewer.
      limit: if given, only this many examples, drawn at random but always the same.
      on_decode_error: if given, what cannot be read is left out, and this is called with its index
        and the error; if None, it raises DataError.

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
            try:
                examples = source.load(chosen)
            except DataError:
                if on_decode_error is None:
                    raise
                examples, chosen = _readable(source, chosen, on_decode_error)
            labels = None if source.num_classes is None else source.labels[chosen]
            if len(chosen):
                yield examples, labels

    return batches()


def _readable(
    source: IndexedSource, chosen: np.ndarray, on_decode_error: Callable[[int, str], None]
) -> tuple[Tree, np.ndarray]:
    """The examples that can be read, and their indices."""
    examples, found = [], []
    for index in chosen:
        try:
            examples.append(source.load(np.array([index])))
            found.append(index)
        except DataError as error:
            on_decode_error(int(index), str(error))
    if not found:
        return None, np.array([], np.int64)
    return _joined(examples), np.array(found)


def _joined(batches: list[Tree]) -> Tree:
    """One batch of several."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)
