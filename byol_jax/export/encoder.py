"""Our own format: encoder weights as model.safetensors, all else as config.json.

    config.json         architecture, image size, mean and std, and how the encoder was trained
    model.safetensors   float32 arrays under their paths, such as params/conv1/kernel (HWIO) and
                        batch_stats/bn1/mean

Neither file can hold code. `load` needs no data, no TensorFlow and no checkpoint.
"""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
import numpy as np
import safetensors.numpy

from byol_jax import build, views
from byol_jax import config as config_lib
from byol_jax.errors import UserError

if TYPE_CHECKING:  # runs knows checkpoints, which a reader of exports need not have installed
    from byol_jax.runs import Trained

FORMAT = "byol_jax.encoder.1"


def save(trained: "Trained", directory: Path) -> None:
    """Writes the online encoder of a run into a folder, which is made if need be.

    Raises:
      UserError: the folder cannot be written, or holds a config.json of something else.
    """
    _check_ours_or_new(directory)
    config, state = trained.run.config, trained.state
    tree = {
        "params": state.online_params["encoder"],
        "batch_stats": state.online_stats["encoder"],
    }
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    record = {
        "format": FORMAT,
        "encoder": config.encoder.to_dict(),
        "dtype": config.dtype,
        "image_size": config.data.image_size,
        "channels": config.data.channels,
        "mean": list(config.views.mean),
        "std": list(config.views.std),
        "training": {
            "method": "BYOL (arXiv 2006.07733)",
            "step": int(state.step),
            "total_steps": trained.run.total_steps,
            "data": trained.run.data,
            "config": config.to_dict(),
        },
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(arrays, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"--output={directory} cannot be written ({error.strerror}): choose another folder."
        ) from error


def _check_ours_or_new(directory: Path) -> None:
    path = directory / "config.json"
    if path.exists() and f'"format": "{FORMAT}"' not in path.read_text():
        raise UserError(
            f"--output={directory} holds a config.json of something else, a run perhaps: choose "
            "another folder."
        )


class Encoder:
    """A trained encoder in evaluation mode.

    Attributes:
      config: what config.json says.
      module: the Flax module; call it with `variables` to go on training or to differentiate.
      variables: {'params': ..., 'batch_stats': ...}, float32.
    """

    def __init__(self, config: dict[str, Any], variables: dict[str, Any]):
        self.config = config
        tree = config_lib.default()
        tree.encoder.update(config["encoder"])
        tree.dtype = config["dtype"]
        self.module = build.encoder(tree)
        self.variables = variables

    def embed(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Embeddings of images.

        Args:
          images: uint8 (n, height, width, channels), n >= 1; best of the size that the encoder was
            trained at (`config['image_size']`), though any works.
          batch_size: images at a time.

        Returns:
          Float32 (n, features).

        Raises:
          UserError: another dtype or shape, no image, or a batch size below 1.
        """
        try:
            images = np.asarray(images)
        except ValueError:
            raise UserError(
                "embed was given images of several sizes: bring them to one size first."
            ) from None
        channels = self.config["channels"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(
                f"embed takes uint8 images (n, height, width, {channels}), not {images.dtype} "
                f"{images.shape}."
            )
        if not len(images) or batch_size < 1:
            raise UserError(
                f"embed was given {len(images)} images and batch_size={batch_size}: both must be "
                "at least 1."
            )
        batches = range(0, len(images), batch_size)
        return np.concatenate([self._embed(images[i : i + batch_size]) for i in batches])

    @functools.cached_property
    def _embed(self):
        mean, std = self.config["mean"], self.config["std"]

        @jax.jit
        def embed(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            return self.module.apply(variables, views.normalize(images, mean, std), train=False)

        return functools.partial(embed, self.variables)


def load(directory: str | Path) -> Encoder:
    """Opens a folder that `experiments.export` wrote.

    Raises:
      UserError: it is not such a folder, or its weights do not fit its config.
    """
    directory = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} is not an exported encoder (no {name}): make one with "
                "python -m experiments.export --checkpoint=RUN --output=OUT."
            )
    try:
        config = json.loads((directory / "config.json").read_text())
        flat = safetensors.numpy.load_file(directory / "model.safetensors")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory} cannot be read: {error}") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{directory}/config.json has format {found!r}, this version reads {FORMAT}."
        )
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
    shapes = [
        {name: array.shape for name, array in flax.traverse_util.flatten_dict(t, sep="/").items()}
        for t in (expected, encoder.variables)
    ]
    wrong = sorted(k for k in shapes[0] | shapes[1] if shapes[0].get(k) != shapes[1].get(k))
    if wrong:
        raise UserError(
            f"{directory}/model.safetensors does not fit its config.json: {wrong[0]} is "
            f"{shapes[1].get(wrong[0])} and should be {shapes[0].get(wrong[0])}."
        )
