"""Signals and tables: arrays of numbers of any shape, one for each example, or two that belong
together, such as two sensors of one movement.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, config_dict

from byol_jax import byol, models
from byol_jax.augment import signals as augment
from byol_jax.byol import Tree
from byol_jax.data.signals import SignalSource, open_signals
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs import user_code
from byol_jax.runs.kinds import drawing
from byol_jax.runs.kinds.indexed_kind import IndexedKind, arrays_alone, check_encoders
from byol_jax.runs.limits import MAX_FINITE, MIN_POSITIVE, limit

PREFIX = "npz:"
DIGITS = 4  # of standard deviations, and of means relative to them
PICTURE = 1.2  # inches


class Signals(IndexedKind):
    """float32 arrays by name, in memory."""

    name = "signals"
    unit = "signals"
    input_meaning = "not normalised: mean and std are applied inside"
    raw_name = "raw"
    source_type = SignalSource
    at_least = limit(MIN_POSITIVE, "views.*.window_min views.*.window_max")
    at_most = limit(
        1, "views.*.window_min views.*.window_max views.*.mask_share views.*.drop_share"
    )

    def add_settings(self, config):  # noqa: D102 (see Kind, here and below)
        # Names of one or two arrays of the source, "acc" or "acc,gyro": of one, both views are
        # taken; of two, one view of each. Empty: the only one that there is.
        config.data.arrays = ""
        config.data.shapes = ""  # of an example of each array, "256x3,256x3"; from the data
        view = dataclasses.asdict(augment.View())
        config.views = ConfigDict({"view1": view, "view2": view})
        # Of each channel (the last axis) of one array after the other; None: from the data.
        config.views.mean = config_dict.placeholder(tuple)
        config.views.std = config_dict.placeholder(tuple)
        # MODULE:FUNCTION of your own, traced by JAX: takes a key and a view, float32 (time, ...)
        # and normalised, after the above, and returns the like. docs/own_data.md
        config.augment = ConfigDict({"function": ""})

    def check(self, config, encoder):  # noqa: D102
        del encoder
        if len(_names(config)) > 2:
            raise ConfigError(
                f"config.data.arrays={config.data.arrays} must name one array, or two whose "
                "examples belong together."
            )
        for key in ("mean", "std"):
            values = config.views[key]
            if values is not None and not all(_is_fit(key, value) for value in values):
                raise ConfigError(
                    f"config.views.{key}={tuple(values)} must be finite numbers"
                    f"{' above 0' if key == 'std' else ''}: leave it out, as the data has them."
                )
        if config.data.shapes:
            _check_shapes(self, config)

    def fit_to(self, config: ConfigDict, source: SignalSource) -> None:  # noqa: D102
        super().check_source(config, source)
        arrays = source.arrays
        if len(arrays) > 2:
            raise ConfigError(
                f"{source.name} holds the arrays {', '.join(arrays)}: name one, or two whose "
                "examples belong together, by --config.data.arrays."
            )
        config.data.arrays = ",".join(arrays)
        config.data.shapes = _text(source)
        moments = [_moments(array) for array in arrays.values()]
        for key, values in zip(("mean", "std"), zip(*moments, strict=True), strict=True):
            if config.views[key] is None:
                config.views[key] = tuple(x for of_array in values for x in of_array)

    def check_source(self, config, source):
        """Raises DataError unless a source has the arrays of the run, of the same shapes."""
        super().check_source(config, source)
        if ",".join(source.arrays) != config.data.arrays or _text(source) != config.data.shapes:
            raise DataError(
                f"{source.name} has the arrays {','.join(source.arrays)} of the shapes "
                f"{_text(source)}, and the run's are {config.data.arrays} of {config.data.shapes}: "
                "name data of the same kind."
            )

    def without_user_code(self, config):  # noqa: D102
        config.augment.function = ""

    def wrap(  # noqa: D102
        self,
        record: dict[str, Any],
        make: Callable[..., nn.Module],
        axis_name: str | None = None,
    ) -> nn.Module:
        del axis_name
        names = [*record["arrays"]]
        return make() if len(names) == 1 else models.ByArray({name: make() for name in names})

    def view_shapes(self, config):  # noqa: D102
        return [*_shapes(config).values()] if config.data.shapes else []

    def describe(self, config):  # noqa: D102
        shapes = _shapes(config).items()
        arrays = (f"{name} ({' x '.join(map(str, shape))})" for name, shape in shapes)
        return " and ".join(arrays)

    def open_split(self, config: ConfigDict, split: str) -> SignalSource:  # noqa: D102
        spec = config.data.source
        if not spec.startswith(PREFIX):
            raise ConfigError(
                f"config.data.source={spec} must be npz:PATH: a preset of signals reads archives "
                "that numpy.savez(FILE, NAME=ARRAY, labels=LABELS) writes."
            )
        source = open_signals(spec.removeprefix(PREFIX), split, _names(config))
        if config.data.shapes:
            self.check_source(config, source)
        return source

    def parts(self, config):
        """Each of two arrays alone."""
        names = _names(config)
        return arrays_alone(names) if len(names) > 1 else {}

    def check_same_inputs(self, given, config, record):  # noqa: D102
        has = {name: tuple(array["shape"]) for name, array in record["arrays"].items()}
        wanted = _shapes(config)
        if has != wanted:
            raise ConfigError(
                f"{given} takes arrays of the shapes {has}, and the run's are {wanted}: name an "
                "encoder of the same arrays."
            )

    def raw(self, config, examples):  # noqa: D102
        del config
        return np.concatenate([x.reshape(len(x), -1) for x in examples.values()], axis=1)

    def example_batch(self, config: ConfigDict) -> byol.Batch:  # noqa: D102
        shapes = _shapes(config).items()
        examples = {name: np.zeros((2, *shape), np.float32) for name, shape in shapes}
        return byol.Batch(examples, None, np.arange(2, dtype=np.int32))

    def policy(self, config: ConfigDict) -> augment.Policy:  # noqa: D102
        views = (augment.View(**config.views[name]) for name in ("view1", "view2"))
        function = user_code.load_augmentation(config, self.view_shapes(config))
        return _policy(*views, self.encoder_record(config)["arrays"], function)

    def as_inputs(self, policy: augment.Policy, views: Tree) -> dict[str, jax.Array]:  # noqa: D102
        named = views if isinstance(views, Mapping) else {next(iter(policy.mean)): views}
        return {
            name: x * jnp.array(policy.std[name]) + jnp.array(policy.mean[name])
            for name, x in named.items()
        }

    def pictures(
        self, policy: augment.Policy, examples: dict[str, np.ndarray], views: Sequence[Tree]
    ) -> dict[str, np.ndarray]:
        """Curves by sample, one for each channel: examples, normalised, and both views."""
        rows = policy.normalize(jax.tree.map(np.asarray, examples))
        for number, view in enumerate(views, start=1):
            named = view.items() if isinstance(view, Mapping) else [("", view)]
            rows |= {f"view {number} {name}".rstrip(): array for name, array in named}
        return {name: _curves(np.asarray(array)) for name, array in rows.items()}

    def encoder_record(self, config: ConfigDict) -> dict[str, Any]:  # noqa: D102
        arrays, start = {}, 0
        for name, shape in _shapes(config).items():
            stop = start + shape[-1]
            arrays[name] = {"shape": list(shape)}
            arrays[name] |= {key: list(config.views[key][start:stop]) for key in ("mean", "std")}
            start = stop
        return {"kind": self.name, "arrays": arrays}

    def config_of_record(self, record: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        arrays = record["arrays"]
        if not isinstance(arrays, dict) or not arrays:
            raise TypeError("'arrays' is not an object")
        shapes = ("x".join(map(str, array["shape"])) for array in arrays.values())
        joined = {
            key: tuple(x for array in arrays.values() for x in array[key])
            for key in ("mean", "std")
        }
        return {
            "data": {"arrays": ",".join(arrays), "shapes": ",".join(shapes)},
            "views": joined,
        }

    def check_inputs(self, record, module, name, given):
        """Returns float32 (n, ...) by name: the only array, or one or both of two."""
        del module
        arrays = record["arrays"]
        is_named = isinstance(given, Mapping)
        if not is_named and len(arrays) > 1:
            raise DataError(f"{name} takes a dictionary of {' and '.join(arrays)}, or one of them.")
        found = dict(given) if is_named else dict.fromkeys(arrays, given)
        unknown = found.keys() - arrays.keys()
        if unknown or not found:
            wanted = ", ".join(arrays)
            raise DataError(f"{name} was given {', '.join(unknown) or 'nothing'}: give {wanted}.")
        for key, array in found.items():
            found[key] = _checked(name, key, array, tuple(arrays[key]["shape"]))
        if len({len(array) for array in found.values()}) > 1:
            raise DataError(f"{name} was given different numbers of {' and '.join(found)}.")
        return found

    def preprocess(self, record, examples):
        """Normalises arrays by name; one array may come without its name, as in an export."""
        arrays = record["arrays"]
        if not isinstance(examples, Mapping):
            examples = dict.fromkeys(arrays, examples)
        return _policy(augment.View(), augment.View(), arrays).preprocess(examples)

    def blank(self, record, n):  # noqa: D102
        shapes = {
            name: jax.ShapeDtypeStruct((n, *array["shape"]), np.float32)
            for name, array in record["arrays"].items()
        }
        return shapes if len(shapes) > 1 else next(iter(shapes.values()))


def _names(config: ConfigDict) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, config.data.arrays.split(","))))


def _text(source: SignalSource) -> str:
    """The shapes of a source's arrays, as `config.data.shapes` has them."""
    shapes = (array.shape[1:] for array in source.arrays.values())
    return ",".join("x".join(map(str, shape)) for shape in shapes)


def _moments(array: np.ndarray) -> tuple[list[float], list[float]]:
    """Means and standard deviations of channels, rounded by the standard deviation.

    So another machine, whose sums differ in the last bits, nearly always finds the same. A channel
    that is constant has a standard deviation of 1.
    """
    axes = tuple(range(array.ndim - 1))
    stds = [float(f"{std:.{DIGITS}g}") or 1.0 for std in array.std(axes, dtype=np.float64)]
    means = array.mean(axes, dtype=np.float64)
    steps = [std * 10.0**-DIGITS for std in stds]
    rounded = (round(mean / step) * step for mean, step in zip(means, steps, strict=True))
    return [float(f"{mean:.12g}") for mean in rounded], stds


def _is_fit(key: str, value: Any) -> bool:
    """Whether it can be a mean, or a standard deviation."""
    is_number = isinstance(value, int | float) and abs(value) <= MAX_FINITE
    return is_number and (key == "mean" or value > 0)


def _policy(
    view1: augment.View,
    view2: augment.View,
    arrays: dict[str, Any],
    function: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> augment.Policy:
    moments = (
        {name: tuple(array[key]) for name, array in arrays.items()} for key in ("mean", "std")
    )
    return augment.Policy(view1, view2, *moments, function)


def _shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """The shape of an example, by array; raises ConfigError if the setting is garbled."""
    names, texts = _names(config), config.data.shapes.split(",")
    try:
        shapes = [tuple(int(side) for side in text.split("x")) for text in texts]
        if len(shapes) == len(names) and all(min(shape) >= 1 for shape in shapes):
            return dict(zip(names, shapes, strict=True))
    except ValueError:
        pass
    raise ConfigError(
        f"config.data.shapes={config.data.shapes} is no list of shapes, one for each of "
        f"config.data.arrays={config.data.arrays}: leave it out, as the data has them."
    )


def _check_shapes(kind: Signals, config: ConfigDict) -> None:
    """Raises ConfigError unless means, standard deviations and encoders fit the shapes."""
    shapes = _shapes(config)
    count = sum(shape[-1] for shape in shapes.values())
    for key in ("mean", "std"):
        if config.views[key] is not None and len(config.views[key]) != count:
            raise ConfigError(
                f"config.views.{key} has {len(config.views[key])} numbers: give {count}, one for "
                "each channel, or leave it out."
            )
    named = {f"the array {name}": shape for name, shape in shapes.items()}
    check_encoders(kind, config, named, "conv1d takes (time, channels), dense any shape")


def _checked(name: str, key: str, array: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A user's array as float32 (n, *shape), or DataError; a signal may have another length."""
    wanted = f"(n, {', '.join(map(str, shape))})"
    try:
        array = np.asarray(array, np.float32)
    except (TypeError, ValueError):
        raise DataError(f"{name}: {key} must be numbers of shape {wanted}.") from None
    if array.ndim != len(shape) + 1 or array.shape[-1] != shape[-1] or not prod(array.shape[1:]):
        raise DataError(f"{name}: {key} must have a shape like {wanted}, not {array.shape}.")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: {key} has NaN or infinity.")
    return array


def _curves(arrays: np.ndarray) -> np.ndarray:
    """Pictures of arrays (n, time, ...): float (n, height, width, 3) in 0..1."""
    figure = drawing.new_figure(PICTURE * len(arrays), PICTURE, dpi=80)
    axes = figure.subplots(1, len(arrays), squeeze=False, sharey=True)[0]
    for axis, array in zip(axes, arrays, strict=True):
        axis.plot(array.reshape(len(array), -1), linewidth=0.8)
        axis.set_axis_off()
    figure.subplots_adjust(0, 0.02, 1, 0.98, 0.05)
    return drawing.columns(figure, len(arrays))
