"""Files of named arrays from anywhere: read as arrays or refused in a sentence."""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from byol_jax.errors import UserError


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a *.safetensors file, by name.

    The format holds no code. Its header is checked against the size of the file, so that nothing
    larger than that is set aside in memory; names may be anything, and are no paths.

    Raises:
      UserError: the file cannot be read, is damaged, or holds numbers that NumPy has not (8 bits).
    """
    try:
        return safetensors.numpy.load_file(path)
    # The last four: types of numbers that NumPy lacks, by version of the package.
    except (
        OSError,
        safetensors.SafetensorError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}.") from error
