"""Arrays of numbers as a source: one or several for each example, such as the sensors of a device.

PATH is a file, which stands for the split "train", or a folder of files SPLIT.npz, as
`numpy.savez(file, NAME=ARRAY, ..., labels=LABELS)` writes them: arrays of numbers (N, ...) of any
names and shapes, and optionally `labels`, integers (N,) from 0 up, and `class_names`, text
(classes,).
"""

from pathlib import Path

import numpy as np

from byol_jax.data import npz
from byol_jax.data.indexed import IndexedSource
from byol_jax.data.source import check_labels
from byol_jax.errors import DataError

NOT_SIGNALS = ("labels", "class_names")


class SignalSource(IndexedSource):
    """Arrays in memory.

    Attributes:
      arrays: float32 (N, ...) by name.
    """

    def __init__(
        self,
        name: str,
        arrays: dict[str, np.ndarray],
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] | None = None,
        fingerprint: str | None = None,
    ):
        """Keeps float32 copies, where that is not their dtype.

        Args:
          name: what to call the source in logs and messages.
          arrays: numbers (N, ...) by name; equal N.
          labels: integers (N,) from 0 up, or None.
          class_names: a name for each label; the numbers "0", "1", ... if left out.
          fingerprint: a digest of the arrays, if there is one: see `Source.fingerprint`.

        Raises:
          DataError: if a shape, dtype or value is not as above, or not finite.
        """
        if not arrays:
            raise DataError(f"{name} holds no array of numbers.")
        counts = {key: len(array) if np.ndim(array) else 0 for key, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"{name}: arrays have different numbers of examples: {counts}.")
        for key in arrays:
            if set(key) & set(",/"):
                raise DataError(f"{name}: rename the array {key!r}, without comma and slash.")
        self.arrays = {key: _float32(name, key, array) for key, array in arrays.items()}
        (count,) = set(counts.values())
        class_names = check_labels(name, count, labels, class_names)
        super().__init__(name, np.full(count, -1) if labels is None else labels, class_names)
        self._fingerprint = fingerprint

    def fingerprint(self):  # noqa: D102 (see Source)
        return self._fingerprint

    def load(self, indices):  # noqa: D102 (see IndexedSource)
        return {key: array[indices] for key, array in self.arrays.items()}

    def describe(self, index):  # noqa: D102 (see Source)
        return f"example {index} of {self.name}"


def _float32(name: str, key: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise DataError(
            f"{name}: {key} has shape {array.shape}; it needs examples first, then at least one "
            "axis that is not empty."
        )
    if array.dtype.kind not in "iufb":
        raise DataError(f"{name}: {key} must hold real numbers, not {array.dtype}.")
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        raise DataError(
            f"{name}: {key} has NaN or infinity in {len(rows)} examples, the first of index "
            f"{rows[0]}: repair or remove them."
        )
    return array


def open_signals(path: str, split: str, names: tuple[str, ...]) -> SignalSource:
    """The arrays of these names in an archive as described above.

    Args:
      path: of a file or folder.
      split: "train" or the name of another file in the folder.
      names: of one or several arrays; () for the only one that there is.

    Raises:
      DataError: there is no such file or array, or its content is different.
    """
    name = f"npz:{path}/{split}"
    file = npz.split_file(Path(path).expanduser(), split)
    known = (*names, *NOT_SIGNALS) if names else ()
    arrays, fingerprint = npz.read(file, "NAME=ARRAY", known)
    labels, class_names = (arrays.pop(key, None) for key in NOT_SIGNALS)
    if not names:
        names = tuple(arrays)
        if len(names) != 1:
            raise DataError(
                f"{file} holds the arrays {', '.join(names) or '(none)'}: choose one, or two whose "
                "examples belong together, by --config.data.arrays=NAME or NAME1,NAME2."
            )
    for key in names:
        if key not in arrays:
            has = [name for name in npz.read(file, "NAME=ARRAY")[0] if name not in NOT_SIGNALS]
            raise DataError(f"{file} holds no array {key!r}; it has {', '.join(has)}.")
    if class_names is not None:
        class_names = tuple(map(str, class_names.ravel()))
    return SignalSource(name, {key: arrays[key] for key in names}, labels, class_names, fingerprint)
