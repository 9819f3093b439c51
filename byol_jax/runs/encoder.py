"""Trained networks in evaluation mode, and `load`, which opens them.

An `Encoder` computes embeddings f(x) of images. A run, ours or imported, also keeps the heads, and
opens as a `Model`, which projects and predicts too. `load` of an export needs neither Orbax nor
TensorFlow.
"""

import functools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from byol_jax import backend, byol, models
from byol_jax.byol import Tree
from byol_jax.errors import CheckpointError, ConfigError, DataError, OwnEncoderError
from byol_jax.runs import config as config_lib
from byol_jax.runs import kinds, manifest, paths
from byol_jax.runs.resolve import from_record

if TYPE_CHECKING:  # it imports Orbax
    from byol_jax.runs.run import Trained

FORMAT = "byol_jax.encoder.3"


class Encoder:
    """A trained encoder in evaluation mode.

    Attributes:
      config: a dictionary of 'encoder' (the section of a config), 'dtype', 'matmul_precision'
        (optional), 'training' (where the encoder comes from), 'kind' (of data; images if there is
        none) and what that kind's `encoder_record` adds: of images 'image_size', 'channels', and
        'mean' and 'std' of each channel for values in 0..1.
      module: the Flax module; call it with `variables` to train it further or to differentiate.
      variables: {'params': ..., 'batch_stats': ...}, float32.
    """

    output_name = "features"  # what exports call the output

    def __init__(self, config: dict[str, Any], variables: dict[str, Any]):
        self.config = config
        self.kind = kinds.of_record(config)
        self.module = self._make_module(config)
        self.variables = variables

    @staticmethod
    def _make_module(config: dict[str, Any]) -> nn.Module:
        dtype = jnp.dtype(config["dtype"])

        def make(settings: dict[str, Any] = config["encoder"]) -> nn.Module:
            return models.make_encoder(**settings, dtype=dtype)

        return kinds.of_record(config).wrap(config, make)

    @property
    def encoder(self) -> "Encoder":
        """This encoder; of a `Classifier`, the encoder without the classifier."""
        return self

    @property
    def crop_fraction(self) -> float:
        """Side of the central crop in evaluation, as a share of the image's shorter side."""
        return self.kind.eval_view(self.config).crop_fraction

    def embed(self, images: Tree, batch_size: int = 256) -> np.ndarray:
        """Embeddings f(x) of images, or of examples of another kind.

        Args:
          images: uint8 (n, height, width, channels), n >= 1; best of the size that the encoder was
            trained at (`config['image_size']`), though any works. Of another kind, what its
            `check_inputs` returns.
          batch_size: images at a time. Smaller batches are padded to a power of two, so that few
            sizes are compiled.

        Returns:
          Float32 (n, features).

        Raises:
          DataError: another dtype or shape, a size that the encoder cannot take, no image, or a
            batch size below 1.
        """
        return self._in_batches("embed", self._embed, images, batch_size)

    def embed_dense(
        self, images: np.ndarray, layer: str = "features", batch_size: int = 256
    ) -> np.ndarray:
        """Maps of features of images, for detection, segmentation or correspondences.

        Args:
          images: as of embed.
          layer: 'features' for the last map before the pooling (of a ViT, the tokens of the patches
            after the final norm); or that of an earlier stage: 'layer1', ... of a ResNet, ConvNet
            or ConvNeXt, 'block1', ... of a ViT.
          batch_size: as of embed.

        Returns:
          Float32 (n, h, w, channels).

        Raises:
          DataError: as of embed.
          ConfigError: the encoder has no such layer, or none.
        """
        function = functools.partial(self._embed_dense, layer, self.variables)
        return self._in_batches("embed_dense", function, images, batch_size)

    def _in_batches(
        self,
        name: str,
        function: Callable[[Tree], jax.Array],
        given: Tree,
        batch_size: int,
    ) -> np.ndarray:
        examples = self.kind.check_inputs(self.config, self.module, name, given)
        shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(examples)]
        total = len(jax.tree.leaves(examples)[0])
        if not total or batch_size < 1:
            raise DataError(
                f"{name} was given {total} {self.kind.unit} and batch_size={batch_size}: both must "
                "be at least 1."
            )
        outputs = []
        for start in range(0, total, batch_size):
            count = min(batch_size, total - start)
            size = min(batch_size, 2 ** (count - 1).bit_length())
            batch = jax.tree.map(partial(_padded, start=start, count=count, size=size), examples)
            try:
                outputs.append(np.asarray(function(batch))[:count])
            except flax.errors.ScopeParamShapeError as error:
                expected = [leaf.shape[1:] for leaf in jax.tree.leaves(self.blank(1))]
                raise DataError(
                    f"{name} was given {self.kind.unit} of shape {', '.join(map(str, shapes))}, "
                    f"but this encoder has weights for {', '.join(map(str, expected))}: bring them "
                    "to that size."
                ) from error
        return np.concatenate(outputs)

    def blank(self, n: Any) -> Tree:
        """The shape and dtype of n examples, as it was trained on them, as `ShapeDtypeStruct`."""
        return self.kind.blank(self.config, n)

    @functools.cached_property
    def _embed(self) -> Callable[[np.ndarray], jax.Array]:
        return functools.partial(jax.jit(self.output_fn(self.fast_module(1))), self.variables)

    @functools.cached_property
    def _embed_dense(self) -> Callable[[str, dict[str, Any], np.ndarray], jax.Array]:
        fast = self.fast_module(1)

        def embed(layer: str, variables: dict[str, Any], images: Tree) -> jax.Array:
            count = len(jax.tree.leaves(images)[0])
            module = fast.bind(variables, mutable=["intermediates"])
            self._encode(module, images)
            sown = module.variables.get("intermediates", {})
            found = flax.traverse_util.flatten_dict(sown, sep="/")
            maps = {
                name: values[-1]
                for name, values in found.items()
                if getattr(values[-1], "ndim", 0) == 4 and len(values[-1]) == count  # no frames
            }
            if not maps:
                raise ConfigError(
                    f"{type(self.module).__name__} has no maps of features: call "
                    "self.sow('intermediates', 'features', x) in it, with x (batch, height, width, "
                    "channels)."
                )
            if layer not in maps:
                raise ConfigError(f"layer={layer!r} is not one of {', '.join(maps)}.")
            return maps[layer].astype(jnp.float32)

        return jax.jit(embed, static_argnums=0)

    def fast_module(self, devices: int | None = None) -> nn.Module:
        """The module with the convolution of this machine.

        Args:
          devices: CPU devices that compute at the same time and share the cores; by default all.
        """
        training = self.config["training"].get("config") or {}
        wanted = training.get("cpu_convolution", backend.AUTO)
        chosen = backend.choose_convolution(wanted, devices, self.config["dtype"])
        return models.with_fields(self.module, convolution=chosen.function)

    def output_fn(self, module: nn.Module) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """(variables, uint8 images) -> float32 (n, features) by `module`, not compiled."""

        def embed(variables: dict[str, Any], images: jax.Array) -> jax.Array:
            return self._encode(module.bind(variables), images)

        return embed

    def _encode(self, module: nn.Module, images: jax.Array) -> jax.Array:
        """Uint8 images -> float32 (n, features) by a bound module."""
        with models.matmul_precision(self.config.get("matmul_precision", "default")):
            return models.encode(module, self.kind.preprocess(self.config, images), train=False)


class Classifier(Encoder):
    """A fine-tuned encoder with a linear classifier.

    Attributes:
      config: as of an `Encoder`, and 'class_names', in the order of the probabilities.
      module: a `models.Classifier`.
      variables: of the encoder under 'encoder', and of the classifier under 'head'.
    """

    output_name = "probabilities"

    @staticmethod
    def _make_module(config: dict[str, Any]) -> nn.Module:
        return models.Classifier(Encoder._make_module(config), len(config["class_names"]))

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder without the classifier."""
        config = {key: value for key, value in self.config.items() if key != "class_names"}
        of_encoder = {
            kind: variables.get("encoder", {}) for kind, variables in self.variables.items()
        }
        return Encoder(config, of_encoder)

    def predict(self, images: np.ndarray, batch_size: int = 256) -> list[str]:
        """The name of the most probable class of each image; arguments and errors as of embed."""
        best = self.probabilities(images, batch_size).argmax(axis=1)
        return [self.config["class_names"][index] for index in best]

    def probabilities(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Probabilities of classes, float32 (n, classes); arguments and errors as of embed."""
        return self._in_batches("probabilities", self._embed, images, batch_size)

    def embed(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:  # noqa: D102
        return self.encoder.embed(images, batch_size)

    def embed_dense(  # noqa: D102
        self, images: np.ndarray, layer: str = "features", batch_size: int = 256
    ) -> np.ndarray:
        return self.encoder.embed_dense(images, layer, batch_size)

    def output_fn(self, module: nn.Module) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """(variables, uint8 images) -> float32 (n, classes), probabilities, not compiled."""
        logits = super().output_fn(module)
        return lambda variables, images: jax.nn.softmax(logits(variables, images))


class Model(Encoder):
    """The online network of a run at a checkpoint (as from `run.restore`), in evaluation mode.

    Attributes:
      learner: the learner of the run; `byol.update` trains `state` further, without
        `config.augment.function`, which is never imported from a run on disk.
      state: everything that changes during training.
    """

    def __init__(self, trained: "Trained"):
        run, self.learner, self.state = trained
        config, state = run.config, self.state
        record = {
            "encoder": config.encoder.to_dict(),
            "dtype": config.dtype,
            "matmul_precision": config.matmul_precision,
            **kinds.of(config).encoder_record(config),
            "training": {
                "method": "BYOL (arXiv 2006.07733)",
                "step": int(state.step),
                "total_steps": run.total_steps,
                "data": run.data,
                "config": config.to_dict(),
            },
        }
        stats = state.online_stats.get("encoder", {})
        variables = {"params": state.online_params["encoder"], "batch_stats": stats}
        # Through JSON, so that it equals the record of an export.
        super().__init__(json.loads(json.dumps(record)), variables)

    def project(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Projections z = g(f(x)), float32 (n, output_size); arguments and errors as of embed."""
        return self._in_batches(
            "project", lambda batch: self._infer(batch).projection, images, batch_size
        )

    def predict(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Predictions q(z), float32 (n, output_size); arguments and errors as of embed.

        Raises:
          ConfigError: the run was trained without a predictor.
        """
        if "predictor" not in self.state.online_params:
            raise ConfigError(
                "This run was trained without a predictor (config.heads.predictor_layers=0): use "
                "project."
            )
        return self._in_batches(
            "predict", lambda images: self._infer(images).prediction, images, batch_size
        )

    @functools.cached_property
    def _infer(self) -> Callable[[np.ndarray], models.Outputs]:
        infer = jax.jit(lambda state, images: byol.infer(self.learner, state, images))
        return functools.partial(infer, self.state)


def _padded(array: np.ndarray, start: int, count: int, size: int) -> np.ndarray:
    """`count` rows from `start`, and zeros up to `size` rows."""
    rows = array[start : start + count]
    return np.pad(rows, [(0, size - count)] + [(0, 0)] * (array.ndim - 1))


def load(directory: str | Path, step: int | None = None) -> Encoder:
    """Opens an exported encoder, or a run at one of its checkpoints.

    Args:
      directory: an export in our own format, or the --workdir of a run, ours or imported.
      step: of a run's checkpoint; None for the newest.

    Returns:
      An `Encoder` of an export, a `Classifier` if it was fine-tuned; a `Model` of a run.

    Raises:
      CheckpointError: the folder is neither, or damaged; the run has no such checkpoint; a step of
        an export.
    """
    directory = paths.path(directory)
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{directory} is neither a pre-training run nor an exported encoder (no config.json): "
            "make one with byol-jax pretrain, or export one with byol-jax export --checkpoint=RUN "
            "--output=OUT."
        )
    try:
        record = paths.read_record(directory)
        is_run = "config" in record and "format" not in record
    except (OSError, ValueError) as error:
        is_run = (directory / "checkpoints").is_dir()  # whose error names the run
        if not is_run:
            raise CheckpointError(f"{directory}/config.json cannot be read: {error}.") from error
    if is_run:
        from byol_jax.runs import run as run_lib  # imports Orbax

        return Model(run_lib.restore(directory, step))
    if step is not None:
        raise CheckpointError(
            f"{directory} is an exported encoder, which has no steps to choose from (step={step}): "
            "leave step out, or name the folder of the run."
        )
    return _open_export(directory, record)


def save(encoder: Encoder, directory: Path) -> None:
    """Writes an encoder into a folder, which is made if needed.

    An earlier export there is replaced once the new one is complete.

    Raises:
      CheckpointError: the folder cannot be written, or holds something else.
    """
    flat = flax.traverse_util.flatten_dict(encoder.variables, sep="/")
    arrays = {name: np.asarray(array, order="C") for name, array in flat.items()}
    with paths.write_folder(directory, {"format": FORMAT} | encoder.config) as staging:
        safetensors.numpy.save_file(arrays, staging / "model.safetensors")


def _open_export(directory: Path, config: dict[str, Any]) -> Encoder:
    """Opens a folder that `save` wrote, with the contents of its config.json."""
    path, found = directory / "model.safetensors", config.pop("format", None)
    if not path.is_file():
        raise CheckpointError(
            f"{directory} is not an exported encoder (no {path.name}): make one with "
            "byol-jax export --checkpoint=RUN --output=OUT."
        )
    if found != FORMAT:
        raise CheckpointError(
            f"{directory}/config.json has format {found!r}, and this version reads {FORMAT}: "
            "export it again with --format=byol_jax."
        )
    try:
        _check_config(config)
        encoder = (Classifier if "class_names" in config else Encoder)(config, variables={})
        view = jax.eval_shape(partial(encoder.kind.preprocess, config), encoder.blank(1))
        wanted = models.variable_shapes(encoder.module, view)
    # The first three: what is missing, and what JAX raises for impossible sizes.
    except OwnEncoderError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise CheckpointError(
            f"{directory}/config.json lacks or garbles a setting: {reason}."
        ) from error
    arrays = read_safetensors(path)
    wrong = manifest.difference(arrays, flax.traverse_util.flatten_dict(wanted, sep="/"))
    if wrong:
        raise CheckpointError(f"{path} does not fit its config.json: {wrong}.")
    encoder.variables = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return encoder


def _check_config(config: dict[str, Any]) -> None:
    """Raises ConfigError, KeyError or TypeError unless the fields are those of an `Encoder`."""
    names = config.get("class_names", [""])
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ConfigError("'class_names' is not a list of texts")
    training = config["training"]
    if not isinstance(training, dict) or not {"method", "step"} <= training.keys():
        raise ConfigError("'training' lacks 'method' or 'step'")
    if not isinstance(training.get("data") or {}, dict):
        raise ConfigError("'data' of 'training' is not an object")
    kind = kinds.of_record(config)
    record = kind.config_of_record(config) | {
        "encoder": config["encoder"],
        "dtype": config["dtype"],
        "matmul_precision": config.get("matmul_precision", "default"),
        "steps": 1,
    }
    # A record must name its data and its length; an encoder has neither.
    record["data"] |= {"kind": kind.name, "source": config_lib.UNKNOWN_SOURCE}
    from_record(record)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a *.safetensors file, by name; names may be anything, and are not paths.

    The format holds no code, and its header is checked against the size of the file, so that a
    damaged file does not use more memory than its size.

    Raises:
      CheckpointError: the file cannot be read, is damaged, or holds a dtype that NumPy lacks.
    """
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # by version of the package, for a dtype that NumPy lacks
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error
