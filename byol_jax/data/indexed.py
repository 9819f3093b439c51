"""Sources whose examples NumPy loads by index, and their batches; without TensorFlow.

For all kinds of data but images. An example is a pytree of arrays. The order of an epoch is a
function of (seed, epoch), so there is no state to save: any process makes any step, and neither a
resume nor the number of processes changes an example.
"""

import abc
import collections
import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from byol_jax.backend import cpu_devices
from byol_jax.byol import Batch, Tree
from byol_jax.data.source import Source, steps_per_epoch
from byol_jax.errors import ConfigError, DataError

REPLACEMENTS = 16  # other examples that are tried in place of one that cannot be read
AHEAD = 2  # batches that are loaded while one is used


class Loaded(NamedTuple):
    """Examples, their indices, and an index and a message for each that could not be read."""

    examples: Tree  # None without any
    chosen: np.ndarray
    errors: list[tuple[int, str]]


class OtherExampleError(DataError):
    """Not an example itself cannot be read, but another one that its seed chose to go with it."""


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

        It is called by several threads, with parts of a batch. Raises DataError, which names one
        that cannot be read.
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

    @functools.lru_cache(1)  # used by one thread alone, step after step
    def order_of(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(source.num_examples)

    def load(epoch: int, chosen: np.ndarray) -> Loaded:
        """Positions in the epoch and the examples there: (n, 2)."""
        seeds = [(seed, epoch, int(position)) for position in chosen[:, 0]]
        return _load(source, chosen[:, 1], seeds, on_decode_error is not None)

    def loads() -> Iterator[tuple[Callable[[np.ndarray], Loaded], np.ndarray]]:
        for step in range(start_step, num_steps):
            epoch, step_of_epoch = divmod(step, epoch_steps)
            positions = step_of_epoch * batch_size + rows
            chosen = np.stack([positions, order_of(epoch)[positions]], axis=1)
            yield functools.partial(load, epoch), chosen

    def batches() -> Iterator[Batch]:
        for step, (examples, chosen, errors) in enumerate(_in_threads(loads()), start_step):
            for _, error in errors:  # here, and not in a thread that is ahead
                on_decode_error(step + 1, error)
            labels = None if source.num_classes is None else source.labels[chosen]
            yield Batch(examples, labels, rows.astype(np.int32))

    return batches()


def _in_threads(
    loads: Iterable[tuple[Callable[[np.ndarray], Loaded], np.ndarray]],
) -> Iterator[Loaded]:
    """Batches in order, of which threads load AHEAD more, by parts.

    Args:
      loads: for each batch a function, and an array of which it takes any part.
    """
    threads = cpu_devices.cores()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def begin(load: Callable[[np.ndarray], Loaded], of: np.ndarray) -> list:
            return [pool.submit(load, part) for part in np.array_split(of, min(threads, len(of)))]

        loads = iter(loads)
        pending = collections.deque(itertools.starmap(begin, itertools.islice(loads, AHEAD)))
        try:
            while pending:
                loaded = _joined([future.result() for future in pending.popleft()])
                pending.extend(itertools.starmap(begin, itertools.islice(loads, 1)))
                yield loaded
        finally:
            pool.shutdown(cancel_futures=True)


def _load(
    source: IndexedSource, chosen: np.ndarray, seeds: list[tuple[int, ...]], replace: bool
) -> Loaded:
    """Examples for training; if `replace`, others in place of those that cannot be read."""
    try:
        return Loaded(source.load_random(chosen, seeds), chosen, [])
    except DataError:
        if not replace:
            raise
    loaded, errors = [], []
    for first, seed in zip(map(int, chosen), seeds, strict=True):
        others = np.random.default_rng((*seed, REPLACEMENTS + 1)).integers(
            source.num_examples, size=REPLACEMENTS
        )
        candidates = iter((first, *map(int, others)))
        index = next(candidates)
        for attempt in range(REPLACEMENTS + 1):
            # Another seed, too: the random part may be what cannot be read.
            of_attempt = (*seed, attempt) if attempt else seed
            indices = np.array([index])
            try:
                loaded.append(Loaded(source.load_random(indices, [of_attempt]), indices, []))
                break
            except DataError as error:
                errors.append((index, str(error)))
                if not isinstance(error, OtherExampleError):
                    index = next(candidates, index)
        else:
            raise DataError(f"{errors[-1][1]} Nor can {REPLACEMENTS} others drawn in its place.")
    return _joined(loaded)._replace(errors=errors)


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

    def load(chosen: np.ndarray) -> Loaded:
        return _readable(source, chosen, on_decode_error is not None)

    def batches() -> Iterator[tuple[Tree, np.ndarray | None]]:
        starts = range(0, len(indices), batch_size)
        loads = ((load, indices[start : start + batch_size]) for start in starts)
        for examples, chosen, errors in _in_threads(loads):
            for index, error in errors:
                on_decode_error(index, error)
            labels = None if source.num_classes is None else source.labels[chosen]
            if len(chosen):
                yield examples, labels

    return batches()


def _readable(source: IndexedSource, chosen: np.ndarray, skip: bool) -> Loaded:
    """Examples for evaluation; if `skip`, without those that cannot be read."""
    try:
        return Loaded(source.load(chosen), chosen, [])
    except DataError:
        if not skip:
            raise
    loaded, errors = [], []
    for index in map(int, chosen):
        indices = np.array([index])
        try:
            loaded.append(Loaded(source.load(indices), indices, []))
        except DataError as error:
            errors.append((index, str(error)))
    return _joined(loaded)._replace(errors=errors)


def _joined(parts: list[Loaded]) -> Loaded:
    """One of several, in order; those without examples have only errors."""
    errors = [error for part in parts for error in part.errors]
    parts = [part for part in parts if len(part.chosen)]
    if not parts:
        return Loaded(None, np.array([], np.int64), errors)
    examples = [part.examples for part in parts]
    chosen = np.concatenate([part.chosen for part in parts])
    if len(parts) == 1:
        return Loaded(*examples, chosen, errors)
    return Loaded(jax.tree.map(lambda *a: np.concatenate(a), *examples), chosen, errors)
