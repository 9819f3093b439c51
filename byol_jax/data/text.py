"""Texts as a source, and the numbers of their tokens as examples. records.py reads the files."""

from collections.abc import Iterator, Sequence

import numpy as np

from byol_jax.data import records, wordpiece
from byol_jax.data.indexed import IndexedSource
from byol_jax.data.source import Source, check_labels
from byol_jax.errors import DataError

LEARNT_FROM = 200_000  # texts at most, at equal distances, that a vocabulary is learned from


class TextSource(Source):
    """Texts, in memory or in a file.

    Attributes:
      labels: int32 (N,), -1 without labels.
    """

    def __init__(
        self,
        name: str,
        texts: Sequence[str],
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] | None = None,
        fingerprint: str | None = None,
    ):
        """Keeps the texts.

        Args:
          name: what to call the source in logs and messages.
          texts: has a length, and a text or a DataError at each index.
          labels: integers (N,) from 0 up, or None.
          class_names: a name for each label; the numbers "0", "1", ... if left out.
          fingerprint: a digest of the texts, if there is one: see `Source.fingerprint`.

        Raises:
          DataError: there are no texts; a shape, dtype or value is not as above.
        """
        class_names = check_labels(name, len(texts), labels, class_names)
        super().__init__(name, len(texts), class_names)
        labels = np.full(len(texts), -1, np.int32) if labels is None else labels
        self.labels = np.asarray(labels, np.int32)
        self._texts, self._fingerprint = texts, fingerprint

    def fingerprint(self):  # noqa: D102 (see Source)
        return self._fingerprint

    def describe(self, index):  # noqa: D102 (see Source)
        return f"text {index} of {self.name}"

    def text(self, index: int) -> str:
        """A text; raises DataError if it cannot be read."""
        return self._texts[int(index)]

    def vocabulary(self, size: int, skip: bool) -> tuple[str, ...]:
        """A vocabulary of at most `size` tokens, from LEARNT_FROM texts: see `wordpiece.learn`.

        Args:
          size: tokens.
          skip: leave out texts that cannot be read, which else raise DataError.
        """
        indices = np.unique(np.linspace(0, self.num_examples - 1, LEARNT_FROM).astype(np.int64))

        def texts() -> Iterator[str]:
            for index in indices:
                try:
                    yield self.text(index)
                except DataError:
                    if not skip:
                        raise

        return wordpiece.learn(texts, size)


class TokenSource(IndexedSource):
    """Texts as int32 (length,): the numbers of their tokens, and zeros after a shorter text.

    Of a longer text a random window in training, else the beginning.
    """

    def __init__(self, source: TextSource, vocabulary: tuple[str, ...], length: int):
        super().__init__(source.name, source.labels, source.class_names)
        self._source, self._vocabulary, self._length = source, vocabulary, length

    def describe(self, index):  # noqa: D102 (see Source)
        return self._source.describe(index)

    def load(self, indices):  # noqa: D102 (see IndexedSource)
        return first_tokens(self._vocabulary, self._texts(indices), self._length)

    def load_random(self, indices: np.ndarray, seeds: Sequence[tuple[int, ...]]):  # noqa: D102
        numbers = wordpiece.encode(self._vocabulary, self._texts(indices))
        for row, (found, seed) in enumerate(zip(numbers, seeds, strict=True)):
            if len(found) > self._length:
                start = np.random.default_rng(seed).integers(len(found) - self._length + 1)
                numbers[row] = found[start:]
        return _padded(numbers, self._length)

    def _texts(self, indices: np.ndarray) -> list[str]:
        return [self._source.text(index) for index in indices]


def first_tokens(vocabulary: tuple[str, ...], texts: list[str], length: int) -> np.ndarray:
    """Int32 (n, length): the first tokens of each text, and zeros."""
    return _padded(wordpiece.encode_beginning(vocabulary, texts, length), length)


def _padded(numbers: list[list[int]], length: int) -> np.ndarray:
    rows = np.zeros((len(numbers), length), np.int32)
    for row, found in zip(rows, numbers, strict=True):
        row[: len(found)] = found[:length]
    return rows


def open_text(path: str, split: str) -> TextSource:
    """The texts of a split, from .txt, .jsonl or .csv files: see records.py.

    Empty texts are left out.

    Raises:
      DataError: there is no such file, or it cannot be read or used.
    """
    found = records.find("text", path, split, ("text",))
    texts = records.Field(found, "text")
    name = f"text:{path}/{split}"
    source = TextSource(name, texts, found.labels, found.class_names, found.digest)
    if found.empty:
        source.warnings.append(f"Left out, as they are empty: {found.empty} texts of {found.file}.")
    if found.file.suffix.lower() == ".txt" and len(texts) == 1 and "\r" in texts[0]:
        # As old Macs wrote files.
        source.warnings.append(
            f"{found.file} is one text with carriage returns: lines have to end with a line feed."
        )
    return source
