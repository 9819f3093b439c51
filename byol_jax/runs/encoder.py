"""Trained networks in evaluation mode, and `load`, which opens them.

`Encoder` is what most uses need: images to embeddings f(x). A run, ours or an imported one, keeps
the heads too, and opens as a `Model`, which also projects and predicts.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
import numpy as np
import safetensors
import safetensors.numpy

from byol_jax.runs import build
from byol_jax import byol
from byol_jax.runs import paths
from byol_jax.augment import image as image_augment
from byol_jax.runs import config as config_lib
from byol_jax.errors import UserError
from byol_jax.runs import paths

if TYPE_CHECKING:  # runs knows checkpoints, which a reader of exports need not have installed
    from byol_jax.runs.run import Trained

from byol_jax.runs import manifest

FORMAT = "byol_jax.encoder.2"


class Encoder:
    """A trained encoder in evaluation mode.

    Attributes:
      config: a dictionary of 'encoder' (the fields of config.encoder), 'dtype', 'image_size',
        'channels', 'mean' and 'std' of each channel for values in 0..1, and 'training' (how the
        encoder came about).
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

    @property
    def crop_fraction(self) -> float:
        """Side of the central crop in evaluation, as a share of the image's shorter side."""
        training = self.config["training"].get("config") or config_lib.default().to_dict()
        return float(training["crop"]["test_fraction"])

    def embed(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Embeddings f(x) of images.

        Args:
          images: uint8 (n, height, width, channels), n >= 1; best of the size that the encoder was
            trained at (`config['image_size']`), though any works.
          batch_size: images at a time.

        Returns:
          Float32 (n, features).

        Raises:
          UserError: another dtype or shape, no image, or a batch size below 1.
        """
        return self._in_batches("embed", self._embed, images, batch_size)

    def _in_batches(
        self,
        name: str,
        function: Callable[[np.ndarray], jax.Array],
        images: np.ndarray,
        batch_size: int,
    ) -> np.ndarray:
        try:
            images = np.asarray(images)
        except ValueError:
            raise UserError(
                f"{name} was given images of several sizes: bring them to one size first."
            ) from None
        channels = self.config["channels"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(
                f"{name} takes uint8 images (n, height, width, {channels}), not {images.dtype} "
                f"{images.shape}."
            )
        if not len(images) or batch_size < 1:
            raise UserError(
                f"{name} was given {len(images)} images and batch_size={batch_size}: both must be "
                "at least 1."
            )
        batches = range(0, len(images), batch_size)
        return np.concatenate([function(images[i : i + batch_size]) for i in batches])

    @functools.cached_property
    def _embed(self) -> Callable[[np.ndarray], jax.Array]:
        mean, std = self.config["mean"], self.config["std"]

        @jax.jit
        def embed(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            return self.module.apply(variables, image_augment.normalize(images, mean, std), train=False)

        return functools.partial(embed, self.variables)


class Model(Encoder):
    """The whole online network of a run at one of its checkpoints, in evaluation mode.

    Attributes:
      learner: what was trained, and how; with `state` it goes on by `byol.update`.
      state: everything that changes during training.
    """

    def __init__(self, config: dict[str, Any], learner: byol.Learner, state: byol.State):
        variables = {
            "params": state.online_params["encoder"],
            "batch_stats": state.online_stats["encoder"],
        }
        super().__init__(config, variables)
        self.learner = learner
        self.state = state

    def project(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Projections z = g(f(x)), float32 (n, output_size); takes and refuses what embed does."""
        return self._in_batches("project", self._project, images, batch_size)

    def predict(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Predictions q(z), float32 (n, output_size); takes and refuses what embed does.

        Raises:
          UserError: the run was trained without a predictor.
        """
        if "predictor" not in self.state.online_params:
            raise UserError(
                "This run was trained without a predictor (config.heads.predictor_layers=0): use "
                "project."
            )
        return self._in_batches("predict", self._predict, images, batch_size)

    @functools.cached_property
    def _project(self) -> Callable[[np.ndarray], jax.Array]:
        return self._compiled("projection")

    @functools.cached_property
    def _predict(self) -> Callable[[np.ndarray], jax.Array]:
        return self._compiled("prediction")

    def _compiled(self, output: str) -> Callable[[np.ndarray], jax.Array]:
        @jax.jit
        def infer(state: byol.State, images: jax.Array) -> jax.Array:
            return getattr(byol.infer(self.learner, state, images), output)

        return functools.partial(infer, self.state)


def from_trained(trained: "Trained") -> Model:
    """The model of a run at a checkpoint, such as `run_lib.restore` returns."""
    config, state = trained.run.config, trained.state
    record = {
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
    # As JSON gives it back, so that a run and its export say the same.
    return Model(json.loads(json.dumps(record)), trained.learner, state)


def load(directory: str | Path, step: int | None = None) -> Encoder:
    """Opens an exported encoder, or a run at one of its checkpoints.

    Args:
      directory: what `byol_jax.cli.export` wrote in its own format, or the --workdir of a
        pre-training run, or what `byol_jax.cli.import_reference` wrote.
      step: of a run, which checkpoint; the newest by default.

    Returns:
      An `Encoder` of an export, a `Model` of a run.

    Raises:
      UserError: it is neither, or damaged; a run without that checkpoint; a step of an export.
    """
    directory = paths.path(directory)
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} is neither a pre-training run nor an exported encoder (no config.json): "
            "make one with python -m byol_jax.cli.pretrain, or export one with python -m "
            "experiments.export --checkpoint=RUN --output=OUT."
        )
    if _is_run(directory):
        from byol_jax.runs import run as run_lib

        return from_trained(run_lib.restore(directory, step))
    if step is not None:
        raise UserError(
            f"{directory} is an exported encoder, which has no steps to choose from (step={step}): "
            "leave step out, or name the folder of the run."
        )
    
    return read(directory)


def _is_run(directory: Path) -> bool:
    """Whether config.json is a run's; what cannot be read is left to the reader of exports."""
    try:
        record = paths.read_record(directory)
    except (OSError, ValueError):
        return (directory / "checkpoints").is_dir()
    return "config" in record and "format" not in record



def save(encoder: Encoder, directory: Path) -> None:
    """Writes an encoder into a folder, which is made if need be.

    An earlier export there is replaced once all of the new one is written.

    Raises:
      UserError: the folder cannot be written, or holds something else.
    """
    flat = flax.traverse_util.flatten_dict(encoder.variables, sep="/")
    arrays = {name: np.asarray(array, order="C") for name, array in flat.items()}
    with paths.write_folder(directory, {"format": FORMAT} | encoder.config) as place:
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
                "python -m byol_jax.cli.export --checkpoint=RUN --output=OUT."
            )
    try:
        config = paths.read_record(directory)
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
    arrays = read_safetensors(directory / "model.safetensors")
    wrong = manifest.difference(arrays, expected)
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
