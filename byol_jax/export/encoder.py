"""Our own format: encoder weights as model.safetensors, all else as config.json.

    config.json         architecture, image size, mean and std, and how the encoder was trained
    model.safetensors   float32 arrays under their paths, such as params/conv1/kernel (HWIO) and
                        batch_stats/bn1/mean

Neither file can hold code. `read` needs no data, no TensorFlow and no checkpoint.
"""

import json
from pathlib import Path

import flax
import jax
import numpy as np
import safetensors.numpy

from byol_jax import trees
from byol_jax.errors import UserError
from byol_jax.export import folder
from byol_jax.pretrained import Encoder

FORMAT = "byol_jax.encoder.2"


def save(encoder: Encoder, directory: Path) -> None:
    """Writes an encoder into a folder, which is made if need be.

    An earlier export there is replaced once all of the new one is written.

    Raises:
      UserError: the folder cannot be written, or holds something else.
    """
    flat = flax.traverse_util.flatten_dict(encoder.variables, sep="/")
    arrays = {name: np.asarray(array, order="C") for name, array in flat.items()}
    with folder.writing(directory, {"format": FORMAT} | encoder.config) as place:
        safetensors.numpy.save_file(arrays, place / "model.safetensors")


def read(directory: Path) -> Encoder:
    """Opens a folder that `save` wrote.

    Raises:
      UserError: it is not such a folder, or its weights do not fit its config.
    """
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} is not an exported encoder (no {name}): make one with "
                "python -m experiments.export --checkpoint=RUN --output=OUT."
            )
    try:
        config = json.loads((directory / "config.json").read_text())
        found = config.pop("format", None) if isinstance(config, dict) else None
        if found != FORMAT:
            raise UserError(
                f"{directory}/config.json has format {found!r}, and this version reads {FORMAT}: "
                "export it again with --format=byol_jax."
            )
        flat = safetensors.numpy.load_file(directory / "model.safetensors")
    except (OSError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory} cannot be read: {error}") from error
    try:
        encoder = Encoder(config, flax.traverse_util.unflatten_dict(flat, sep="/"))
        _check_weights(directory, encoder)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory}/config.json lacks or garbles {error}.") from error
    return encoder


def _check_weights(directory: Path, encoder: Encoder) -> None:
    size, channels = encoder.config["image_size"], encoder.config["channels"]
    image = jax.ShapeDtypeStruct((1, size, size, channels), np.float32)
    expected = jax.eval_shape(
        lambda x: encoder.module.init(jax.random.key(0), x, train=False), image
    )
    wrong = trees.difference(encoder.variables, expected)
    if wrong:
        raise UserError(f"{directory}/model.safetensors does not fit its config.json: {wrong}.")
