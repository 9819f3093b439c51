"""The interface of a kind of data."""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, data, models
from byol_jax.byol import Tree
from byol_jax.errors import DataError

OnDecodeError = Callable[[int, str], None] | None


class Kind(abc.ABC):
    """What a run needs to know about its examples.

    Attributes:
      name: of `config.data.kind`.
      source_type: class of its sources.
      view_dtype: of the views.
      views_are_inputs: whether there is `as_inputs`.
      raw_name: of the baseline without encoder; None: there is none.
      unit: what examples are called in messages, such as "images".
      input_meaning: what numbers an `Encoder` takes, or an export that carries the computation.
      choices: values that settings of this kind can have, by key; "views.*" is both views.
      at_least: smallest values, likewise, where that is not 0.
      at_most: largest values, likewise.
      more_encoders: sections of the config for encoders beside `config.encoder`, and the names of
        these encoders by default.
      before_the_key: settings of runs from before their key existed, where they behaved otherwise.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    input_meaning: ClassVar[str]
    raw_name: ClassVar[str | None] = None
    source_type: ClassVar[type[data.Source]]
    view_dtype: ClassVar[Any] = jnp.float32
    views_are_inputs: ClassVar[bool] = True
    choices: ClassVar[dict[str, tuple]] = {}
    at_least: ClassVar[dict[str, float]] = {}
    at_most: ClassVar[dict[str, float]] = {}
    more_encoders: ClassVar[dict[str, str]] = {}
    before_the_key: ClassVar[dict[str, Any]] = {}

    # The config.

    @abc.abstractmethod
    def add_settings(self, config: ConfigDict) -> None:
        """Adds the settings that only this kind has, with their defaults."""

    def resolve(self, config: ConfigDict) -> None:
        """Fills in settings of this kind; raises ConfigError for what cannot work."""
        del config

    @abc.abstractmethod
    def check(self, config: ConfigDict, encoder: nn.Module) -> None:
        """Raises ConfigError for settings that cannot work."""

    @abc.abstractmethod
    def fit_to(self, config: ConfigDict, source: data.Source) -> None:
        """Fills in what depends on the training data; raises UserError for what cannot work."""

    def check_source(self, config: ConfigDict, source: data.Source) -> None:
        """Raises DataError unless the examples of a source are such as a run was trained on."""
        del config
        if not isinstance(source, self.source_type):
            raise DataError(f"{source.name} holds no {self.unit}, as config.data.kind says.")

    def check_encoder(self, config: ConfigDict, encoder: nn.Module) -> None:
        """Raises ValueError, beginning with a setting, if an encoder cannot take the views."""
        del config, encoder

    def wrap(
        self,
        record: dict[str, Any],
        make: Callable[..., nn.Module],
        axis_name: str | None = None,
    ) -> nn.Module:
        """The encoder of an `encoder_record`, from a function that makes one.

        Args:
          record: the record.
          make: makes the encoder of `config.encoder`, or of other settings, a mapping.
          axis_name: mapped axis of replicas, for batch norms around encoders.
        """
        del axis_name
        return self.adapt(models.with_fields(make(), **self.sizes(record)))

    def sizes(self, record: dict[str, Any]) -> dict[str, int]:
        """Fields of an encoder that are no settings, as the data has them, of an `encoder_record`.

        An encoder that lacks such a field is left as it is.
        """
        del record
        return {}

    def adapt(self, encoder: nn.Module) -> nn.Module:
        """What takes views: an encoder by name or of the user's own, or a module around it."""
        return encoder

    def without_user_code(self, config: ConfigDict) -> None:
        """Takes out the names of functions whose import would run code."""
        del config

    def num_local_views(self, config: ConfigDict) -> int:
        """How many views there are beside the two, for the online network alone."""
        del config
        return 0

    @abc.abstractmethod
    def view_shapes(self, config: ConfigDict) -> list[Tree]:
        """Shapes of one example in a view, without the batch: the different ones."""

    def more_views(self, config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """One example in a view, without the batch, as each of `more_encoders` takes it."""
        del config
        return {}

    @abc.abstractmethod
    def describe(self, config: ConfigDict) -> str:
        """What the views are, in a few words for the log."""

    # Data.

    @abc.abstractmethod
    def open_split(self, config: ConfigDict, split: str) -> data.Source:
        """A split of the config's source; raises DataError if it cannot be opened."""

    @abc.abstractmethod
    def train_batches(
        self,
        config: ConfigDict,
        source: data.Source,
        start_step: int,
        total_steps: int,
        on_decode_error: OnDecodeError,
    ) -> Iterator[byol.Batch]:
        """As `inputs.train_batches`."""

    @abc.abstractmethod
    def eval_batches(
        self,
        config: ConfigDict,
        source: data.Source,
        batch_size: int,
        limit: int | None,
        on_decode_error: OnDecodeError,
    ) -> Iterator[tuple[Tree, np.ndarray | None]]:
        """Examples for `preprocess` and labels, once each, in an order that never changes."""

    def eval_view(self, record: dict[str, Any]) -> Any:
        """What an encoder with this `encoder_record` sees of an example; hashable."""
        del record
        return None

    @abc.abstractmethod
    def eval_views(
        self,
        config: ConfigDict,
        source: data.Source,
        views: Sequence[Any],
        batch_size: int,
        on_decode_error: OnDecodeError,
    ) -> Iterator[tuple[tuple[Tree, ...], np.ndarray | None]]:
        """As `eval_batches`, of all examples, with a batch for each of some `eval_view`s."""

    def parts(self, config: ConfigDict) -> dict[str, Callable[[Tree], Tree]]:
        """Functions from examples to a part of each that an encoder takes too, by name."""
        del config
        return {}

    def check_same_inputs(self, given: str, config: ConfigDict, record: dict[str, Any]) -> None:
        """Raises ConfigError, which begins with `given`, if an encoder takes other examples."""
        del given, config, record

    def raw(self, config: ConfigDict, examples: Tree) -> np.ndarray:
        """The examples themselves as float32 (n, d): a baseline without encoder.

        Only where `raw_name` is not None.
        """
        raise NotImplementedError

    def input_bound_hint(self, config: ConfigDict, source: data.Source) -> str:
        """What would make the training batches of a run come faster."""
        del config, source
        return "Give it more processor cores."

    # Views.

    @abc.abstractmethod
    def example_batch(self, config: ConfigDict) -> byol.Batch:
        """Two blank examples of the shapes that a run trains on."""

    @abc.abstractmethod
    def policy(self, config: ConfigDict) -> Callable[[jax.Array, Tree], tuple[Tree, ...]]:
        """(key, example) -> views; its `preprocess` is that of `byol.Learner`."""

    def perturb(self, config: ConfigDict) -> Callable | None:
        """What changes the views of the online network; None: nothing does."""
        del config
        return None

    def as_inputs(self, policy: Any, views: Tree) -> Tree:
        """Views of a batch, as an `Encoder` takes examples: not normalised.

        Only where `views_are_inputs`.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def pictures(
        self,
        policy: Callable[[jax.Array, Tree], tuple[Tree, ...]],
        examples: Tree,
        views: Sequence[Tree],
    ) -> dict[str, np.ndarray]:
        """Pictures of a few examples and of their views, for people.

        Args:
          policy: as of `policy`.
          examples: a batch of n examples, as the policy takes them.
          views: the views of the batch.

        Returns:
          By the name of a row, float (n, height, width, channels) in 0..1.
        """

    # An `Encoder`, whose `config` is a dictionary.

    @abc.abstractmethod
    def encoder_record(self, config: ConfigDict) -> dict[str, Any]:
        """What an `Encoder` has to know about its inputs, for its `config`."""

    @abc.abstractmethod
    def config_of_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """The parts of a run's config that are in an `Encoder`'s; raises LookupError, TypeError."""

    @abc.abstractmethod
    def check_inputs(
        self, record: dict[str, Any], module: nn.Module, name: str, given: Any
    ) -> Tree:
        """What a user gave to a method `name`, as arrays; raises DataError if it cannot be used."""

    @abc.abstractmethod
    def preprocess(self, record: dict[str, Any], examples: Tree) -> Tree:
        """A batch of examples as the encoder's module takes it."""

    @abc.abstractmethod
    def blank(self, record: dict[str, Any], n: Any) -> Tree:
        """The shape of n examples, as `jax.ShapeDtypeStruct`."""
