"""Our own format: encoder weights as model.safetensors, all else as config.json.

    config.json         architecture, image size, mean and std, and how the encoder was trained
    model.safetensors   float32 arrays under their paths, such as params/conv1/kernel (HWIO) and
                        batch_stats/bn1/mean

Neither file can hold code. `read` needs no data, no TensorFlow and no checkpoint.
"""

from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import safetensors.numpy

from byol_jax import config as config_lib
from byol_jax import trees
from byol_jax.errors import UserError
from byol_jax.export import folder
from byol_jax.interop import weights
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
        config = folder.read_record(directory)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}/config.json cannot be read: {error}.") from error
    found = config.pop("format", None)
    if found != FORMAT:
        raise UserError(
            f"{directory}/config.json has format {found!r}, and this version reads {FORMAT}: "
            "export it again with --format=byol_jax."
        )
    try:
        _check_config(config)
        encoder = Encoder(config, variables={})
        expected = _shapes(encoder)
    except UserError as error:
        raise UserError(f"{directory}/config.json describes no encoder: {error}") from error
    # What Flax and JAX raise where a size is none.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{directory}/config.json lacks or garbles {error}.") from error
    arrays = weights.read_safetensors(directory / "model.safetensors")
    wrong = trees.difference(arrays, expected)
    if wrong:
        raise UserError(f"{directory}/model.safetensors does not fit its config.json: {wrong}.")
    encoder.variables = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return encoder


def _check_config(config: dict[str, Any]) -> None:
    """Raises UserError, KeyError or TypeError unless the fields are what `Encoder` says."""
    tree = config_lib.default()
    tree.encoder.update(config["encoder"])
    tree.dtype = config["dtype"]
    tree.data.image_size, tree.data.channels = config["image_size"], config["channels"]
    tree.views.mean, tree.views.std = tuple(config["mean"]), tuple(config["std"])
    # What an encoder has no need of, and `resolve` asks for.
    tree.data.source, tree.steps = config_lib.UNKNOWN_SOURCE, 1
    config_lib.resolve(tree)
    training = config["training"]
    if not isinstance(training, dict) or not {"method", "step"} <= training.keys():
        raise UserError("'training' does not say how the encoder came about.")
    if not isinstance(training.get("data") or {}, dict):
        raise UserError("'data' of 'training' does not say on what.")
    crop = (training.get("config") or tree.to_dict())["crop"]["test_fraction"]
    if not isinstance(crop, int | float) or not 0 < crop <= 1:
        raise UserError(f"its crop.test_fraction={crop!r} must be above 0 and at most 1.")


def _shapes(encoder: Encoder) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that an encoder's variables need, by path."""
    size, channels = encoder.config["image_size"], encoder.config["channels"]
    image = jax.ShapeDtypeStruct((1, size, size, channels), np.float32)
    variables = jax.eval_shape(
        lambda x: encoder.module.init(jax.random.key(0), x, train=False), image
    )
    return flax.traverse_util.flatten_dict(variables, sep="/")
