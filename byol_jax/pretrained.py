"""Trained networks in evaluation mode, and `load`, which opens them.

`Encoder` is what most uses need: images to embeddings f(x). A run, ours or an imported one, keeps
the heads too, and opens as a `Model`, which also projects and predicts.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from byol_jax import build, byol, files, views
from byol_jax import config as config_lib
from byol_jax.errors import UserError
from byol_jax.export import folder

if TYPE_CHECKING:  # runs knows checkpoints, which a reader of exports need not have installed
    from byol_jax.runs import Trained


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
            return self.module.apply(variables, views.normalize(images, mean, std), train=False)

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
    """The model of a run at a checkpoint, such as `runs.restore` returns."""
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
      directory: what `experiments.export` wrote in its own format, or the --workdir of a
        pre-training run, or what `experiments.import_reference` wrote.
      step: of a run, which checkpoint; the newest by default.

    Returns:
      An `Encoder` of an export, a `Model` of a run.

    Raises:
      UserError: it is neither, or damaged; a run without that checkpoint; a step of an export.
    """
    directory = files.path(directory)
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} is neither a pre-training run nor an exported encoder (no config.json): "
            "make one with python -m experiments.pretrain, or export one with python -m "
            "experiments.export --checkpoint=RUN --output=OUT."
        )
    if _is_run(directory):
        from byol_jax import runs

        return from_trained(runs.restore(directory, step))
    if step is not None:
        raise UserError(
            f"{directory} is an exported encoder, which has no steps to choose from (step={step}): "
            "leave step out, or name the folder of the run."
        )
    from byol_jax.export import encoder

    return encoder.read(directory)


def _is_run(directory: Path) -> bool:
    """Whether config.json is a run's; what cannot be read is left to the reader of exports."""
    try:
        record = folder.read_record(directory)
    except (OSError, ValueError):
        return (directory / "checkpoints").is_dir()
    return "config" in record and "format" not in record
