"""The two networks of BYOL (section 3.1): how encoder, projector and predictor follow each other.

An encoder is any Flax module from a batch of views to one vector per example. A view is an array or
another pytree that the encoder takes, with the batch axis first in every leaf.
"""

import contextlib
import dataclasses
import functools
import inspect
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from byol_jax.models.layers import BatchNorm

Tree = Any  # a pytree of arrays


class Outputs(NamedTuple):
    """What a network returns for a batch of views; a target network returns the first two."""

    embedding: jax.Array  # y = f(v), float32 (batch, features)
    projection: jax.Array  # z = g(y), float32 (batch, size)
    prediction: jax.Array | None = None  # q(z), float32 (batch, size)
    logits: jax.Array | None = None  # of the probe on stop_gradient(y), float32 (batch, classes)


class TargetNetwork(nn.Module):
    """Encoder f and projector g."""

    encoder: nn.Module
    projector: nn.Module
    precision: str = "default"  # of float32 products: see matmul_precision
    parts: ClassVar = ("encoder", "projector")  # what it shares with the online network

    def __call__(self, view: Tree, train: bool) -> Outputs:
        """Embeds and projects a batch of views."""
        with matmul_precision(self.precision):
            embedding = encode(self.encoder, view, train)
            projection = self.projector(embedding, train)
        return Outputs(embedding, projection.astype(jnp.float32))

    def on_each(self, views: tuple[Tree, ...], train: bool) -> list[Outputs]:
        """Calls the network on one view after the other."""
        return [self(view, train) for view in views]


class OnlineNetwork(nn.Module):
    """Encoder f, projector g and predictor q, and a linear probe that monitors training."""

    encoder: nn.Module
    projector: nn.Module
    predictor: nn.Module | None  # None (an ablation): q is the identity
    probe: nn.Module | None = None
    precision: str = "default"  # of float32 products: see matmul_precision

    def __call__(self, view: Tree, train: bool) -> Outputs:
        """Embeds, projects and predicts a batch of views."""
        logits = None
        with matmul_precision(self.precision):
            embedding = encode(self.encoder, view, train)
            projection = self.projector(embedding, train)
            prediction = projection if self.predictor is None else self.predictor(projection, train)
            if self.probe is not None:
                # The probe learns from the labels; the encoder must not.
                logits = self.probe(jax.lax.stop_gradient(embedding)).astype(jnp.float32)
        projection, prediction = projection.astype(jnp.float32), prediction.astype(jnp.float32)
        return Outputs(embedding, projection, prediction, logits)

    def on_each(self, views: tuple[Tree, ...], train: bool) -> list[Outputs]:
        """Calls the network on one view after the other."""
        return [self(view, train) for view in views]


class Classifier(nn.Module):
    """An encoder and a linear classifier of its embeddings."""

    encoder: nn.Module
    num_classes: int

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ValueError, beginning with a setting, if the encoder cannot take such images."""
        if hasattr(self.encoder, "check_image_size"):
            self.encoder.check_image_size(height, width)

    @nn.compact
    def __call__(self, view: Tree, train: bool) -> jax.Array:
        """The logits of a batch of views: float32 (batch, classes)."""
        return nn.Dense(self.num_classes, name="head")(encode(self.encoder, view, train))


class ByArray(nn.Module):
    """An encoder for each array of an example, such as each sensor of a device.

    Their embeddings share projector and predictor.

    Encoders of different kinds, such as of images and of texts, have features of different sizes
    and scales. With a `width`, the features of each pass a linear map of their own to that size, as
    in CLIP (arXiv 2103.00020, figure 3), and a batch norm of its own. So both enter the common
    heads with the same mean and scale, and the running statistics of the batch norms there, which
    are of both together, suit each.

    Attributes:
      encoders: modules as of `encode`; without a `width` their features are of one size.
      width: numbers of the embedding; None: as many as the encoders have.
      axis_name: mapped axis over which batch statistics are averaged; None for one replica.
    """

    encoders: dict[str, nn.Module]
    width: int | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, view: dict[str, Any], train: bool) -> jax.Array:
        """Any of the arrays by name -> the mean of their embeddings, float32 (batch, features)."""
        found = []
        for name in sorted(view):
            features = encode(self.encoders[name], view[name], train)
            if self.width is not None:
                features = nn.Dense(self.width, use_bias=False, name=f"map_{name}")(features)
                norm = BatchNorm(not train, self.axis_name, learned=False, name=f"norm_{name}")
                features = norm(features)
            found.append(features)
        return jnp.mean(jnp.stack(found), axis=0)


class FrameMean(nn.Module):
    """An encoder of images on each frame of a clip; its variables have the names of the encoder's.

    Batch norm is over the frames of all examples.

    Attributes:
      encoder: as of `encode`, for images.
    """

    encoder: nn.Module

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of parameters that the optimizer must leave as they are."""
        return getattr(self.encoder, "frozen", ())

    def setup(self):
        """Gives the encoder's variables no folder of their own."""
        nn.share_scope(self, self.encoder)

    def __call__(self, view: jax.Array, train: bool) -> jax.Array:
        """Float (batch, frames, height, width, channels) -> the mean, float32 (batch, features)."""
        batch, frames = view.shape[:2]
        merged = view.reshape(batch * frames, *view.shape[2:])
        features = encode(self.encoder, merged, train)
        return jnp.mean(features.reshape(batch, frames, features.shape[-1]), axis=1)


def with_fields(module: nn.Module, **fields: Any) -> nn.Module:
    """An encoder, or a module around some, with other values for the fields that they have."""
    if isinstance(module, Classifier | FrameMean):
        return module.clone(encoder=with_fields(module.encoder, **fields))
    if isinstance(module, ByArray):
        inner = {name: with_fields(one, **fields) for name, one in module.encoders.items()}
        return module.clone(encoders=inner)
    has = {field.name for field in dataclasses.fields(module)}
    return module.clone(**{name: value for name, value in fields.items() if name in has})


def matmul_precision(precision: str) -> contextlib.AbstractContextManager:
    """A context in which float32 matrix products are traced with this precision.

    Args:
      precision: 'high' or 'highest', or 'default', which leaves `jax.default_matmul_precision` as
        it is: unless changed, TF32 on NVIDIA GPUs since Ampere.
    """
    if precision == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def variable_shapes(encoder: nn.Module, view: Tree) -> Tree:
    """The variables of an encoder, as `jax.ShapeDtypeStruct`; nothing is computed.

    Args:
      encoder: as of `encode`.
      view: a batch of views, of which only shapes and dtypes matter.
    """
    init = nn.init(functools.partial(encode, train=False), encoder)
    return jax.eval_shape(init, jax.random.key(0), view)


def encode(encoder: nn.Module, view: Tree, train: bool) -> jax.Array:
    """Embeds a batch of views: float32 (batch, features).

    Args:
      encoder: any Flax module; it receives `train` if its `__call__` takes that argument.
      view: batch of views, a pytree with the batch axis first in every leaf.
      train: training mode rather than evaluation mode.

    Raises:
      ValueError: the encoder has another name for `train`, or does not return (batch, features).
    """
    arguments = inspect.signature(type(encoder).__call__).parameters
    synonyms = {"training", "is_training", "deterministic", "use_running_average", "inference"}
    if "train" not in arguments and (found := synonyms & set(arguments)):
        raise ValueError(
            f"The encoder {type(encoder).__name__} takes {min(found)!r}, which nothing sets: "
            "replace it by 'train', which is True in training and False in evaluation."
        )
    embedding = encoder(view, train=train) if "train" in arguments else encoder(view)
    size = jax.tree.leaves(view)[0].shape[0]  # `len` fails for the symbolic sizes of jax.export
    shape = getattr(embedding, "shape", ())
    if len(shape) != 2 or shape[0] != size:
        returned = shape or type(embedding).__name__
        raise ValueError(
            f"The encoder must return (batch, features), but returned {returned} for a batch of "
            f"{size}: end it with a mean over height and width, or a reshape."
        )
    return embedding.astype(jnp.float32)
