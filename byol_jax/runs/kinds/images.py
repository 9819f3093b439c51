"""Images: crops and colours as views."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import adversarial, byol, data, models, parallel
from byol_jax.augment import crops
from byol_jax.augment import image as image_augment
from byol_jax.data import on_device
from byol_jax.data.look import look
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs import user_code
from byol_jax.runs.kinds import image_settings
from byol_jax.runs.kinds.kind import Kind, OnDecodeError, Tree


class Images(Kind):
    """uint8 (height, width, channels) of any size, by tf.data."""

    name = "images"
    unit = "images"
    input_meaning = "0 to 255, not normalised: mean and std are applied inside"
    raw_name = "pixels"
    source_type = data.ImageSource
    choices = image_settings.CHOICES
    at_least = image_settings.AT_LEAST
    at_most = image_settings.AT_MOST
    before_the_key = image_settings.BEFORE_THE_KEY

    def add_settings(self, config):  # noqa: D102 (see Kind, here and below)
        image_settings.add(config)

    def resolve(self, config):  # noqa: D102
        image_settings.resolve(config)

    def check(self, config, encoder):  # noqa: D102
        image_settings.check(config, encoder)

    def fit_to(self, config, source):  # noqa: D102
        self.check_source(config, source)
        config.data.placement = on_device.placement(config, source)
        if not (config.views.mean and config.views.std):
            found = look(source)
            config.views.mean = config.views.mean or found.mean
            config.views.std = config.views.std or found.std

    def check_encoder(self, config, encoder):  # noqa: D102
        models.check_image_size(encoder, config.data.image_size, config.data.image_size)

    def without_user_code(self, config):  # noqa: D102
        config.augment.function = ""

    def num_local_views(self, config):  # noqa: D102
        return config.crop.local_views

    def view_shapes(self, config):  # noqa: D102
        sizes = [config.data.image_size]
        if config.crop.local_views:
            sizes.append(config.crop.local_size)
        return [(size, size, config.data.channels) for size in sizes]

    def describe(self, config):  # noqa: D102
        size, placement = config.data.image_size, config.data.placement
        return f"{size} pixels; crops are computed on the {placement}"

    def open_split(self, config: ConfigDict, split: str) -> data.ImageSource:  # noqa: D102
        name, data_dir = config.data.source, config.data.dir or None
        channels, value_range = config.data.channels, config.data.value_range
        return data.open_source(
            name, split, data_dir=data_dir, channels=channels, value_range=value_range
        )

    def train_batches(
        self,
        config: ConfigDict,
        source: data.ImageSource,
        start_step: int,
        total_steps: int,
        on_decode_error: OnDecodeError,
    ) -> Iterator[byol.Batch]:
        """As `inputs.train_batches`; `config.data.placement` is "host" or "device"."""
        accum_steps = config.accum_steps
        plan = {
            "batch_size": config.batch_size,
            "image_size": config.data.image_size,
            "seed": config.seed,
            "num_steps": total_steps,
            "start_step": start_step,
            "crop": crop(config),
            "local": local_views(config),
        }
        if config.data.placement == "device":
            return on_device.train_batches(source, **plan, accum_steps=accum_steps)
        rows = parallel.rows(config.batch_size, accum_steps)
        plan["shard"] = data.ShardOptions(rows, jax.process_index(), jax.process_count())
        batches = data.train_batches(
            source, **plan, on_decode_error=on_decode_error, service=config.data.service
        )
        # The loop asks for the next batch during an update, which hides its transfer.
        return (parallel.device_put_batch(batch, accum_steps) for batch in batches)

    def eval_batches(self, config, source, batch_size, limit, on_decode_error):  # noqa: D102
        return data.eval_batches(
            source,
            batch_size=batch_size,
            image_size=config.data.image_size,
            crop_fraction=config.crop.test_fraction,
            limit=limit,
            on_decode_error=on_decode_error,
        )

    def eval_view(self, record: dict[str, Any]) -> data.CentralView:
        """The central crop."""
        training = record["training"].get("config")
        fraction = training["crop"]["test_fraction"] if training else image_settings.TEST_FRACTION
        return data.CentralView(record["image_size"], float(fraction))

    def eval_views(self, config, source, views, batch_size, on_decode_error):  # noqa: D102
        del config
        return data.eval_views(
            source, views, batch_size=batch_size, on_decode_error=on_decode_error
        )

    def check_same_inputs(self, given, config, record):  # noqa: D102
        if record["channels"] != config.data.channels:
            raise ConfigError(
                f"{given} takes images of {record['channels']} channels, but the run's have "
                f"{config.data.channels}: name an encoder of as many channels."
            )

    def raw(self, config, examples):  # noqa: D102
        del config
        from byol_jax import evaluate  # late: `byol_jax.load` needs none of it

        return evaluate.pixels(examples)

    def input_bound_hint(self, config, source):  # noqa: D102
        if config.data.placement == "device":
            return (
                "The device computes the crops itself: the time left is the host's own for a step."
            )
        if isinstance(source, data.ArraySource) and on_device.fits(source):
            return "In a new run, config.data.placement=device lets the device compute the crops."
        return (
            "Give it more processor cores, let other machines decode (config.data.service), or "
            "store the images in files not much larger than config.data.image_size."
        )

    def example_batch(self, config: ConfigDict) -> byol.Batch:  # noqa: D102
        def blank(views: int, size: int) -> np.ndarray:
            return np.zeros((2, views, size, size, config.data.channels), np.uint8)

        examples: Tree = blank(2, config.data.image_size)
        if local := local_views(config):
            examples = {"global": examples, "local": blank(local.count, local.size)}
        return byol.Batch(examples, None, np.arange(2, dtype=np.int32))

    def policy(self, config: ConfigDict) -> image_augment.Policy:
        """The policy of both views; imports `config.augment.function`."""
        return image_augment.Policy(
            view1=image_augment.View(**config.views.view1),
            view2=image_augment.View(**config.views.view2),
            mean=tuple(config.views.mean),
            std=tuple(config.views.std),
            function=user_code.load_augmentation(config, self.view_shapes(config)),
        )

    def perturb(self, config: ConfigDict) -> Callable | None:  # noqa: D102
        chosen = config.augment
        if not chosen.adversarial_norm:
            return None
        return adversarial.perturb(chosen.adversarial_norm, chosen.adversarial_iterations)

    def as_inputs(self, policy: image_augment.Policy, views: jax.Array) -> jax.Array:  # noqa: D102
        return image_augment.to_uint8(views, policy.mean, policy.std)

    def pictures(
        self, policy: image_augment.Policy, examples: Tree, views: Sequence[jax.Array]
    ) -> dict[str, np.ndarray]:
        """Crops, and what the online network sees of them."""
        seen = [np.asarray(view) * np.array(policy.std) + np.array(policy.mean) for view in views]
        pairs = examples["global"] if isinstance(examples, dict) else examples
        rows = {}
        for i, of_view in enumerate(pairs.swapaxes(0, 1)):
            rows |= {f"crop {i + 1}": of_view / 255, f"view {i + 1}": seen[i]}
        return rows | {f"local {i + 1}": view for i, view in enumerate(seen[2:])}

    def encoder_record(self, config: ConfigDict) -> dict[str, Any]:  # noqa: D102
        return {
            "image_size": config.data.image_size,
            "channels": config.data.channels,
            "value_range": list(config.data.value_range),
            "mean": list(config.views.mean),
            "std": list(config.views.std),
        }

    def config_of_record(self, record: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        run = record["training"].get("config")
        if not (record["mean"] and record["std"]):
            raise ConfigError("'mean' or 'std' is empty")
        return {
            "views": {"mean": record["mean"], "std": record["std"]},
            "crop": {"test_fraction": run["crop"]["test_fraction"]} if run else {},
            "data": {
                "image_size": record["image_size"],
                "channels": record["channels"],
                "value_range": tuple(record.get("value_range", ())),
            },
        }

    def check_inputs(
        self, record: dict[str, Any], module: nn.Module, name: str, given: Any
    ) -> np.ndarray:
        """Returns uint8 (n, height, width, channels)."""
        try:
            images = np.asarray(given)
        except ValueError:
            raise DataError(
                f"{name} was given images of several sizes: bring them to one size first."
            ) from None
        channels = record["channels"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
            raise DataError(
                f"{name} takes uint8 images (n, height, width, {channels}), not {images.dtype} "
                f"{images.shape}."
            )
        try:
            models.check_image_size(module, *images.shape[1:3])
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        return images

    def preprocess(self, record: dict[str, Any], examples: jax.Array) -> jax.Array:  # noqa: D102
        return image_augment.normalize(examples, record["mean"], record["std"])

    def blank(self, record: dict[str, Any], n: Any) -> jax.ShapeDtypeStruct:  # noqa: D102
        size = record["image_size"]
        return jax.ShapeDtypeStruct((n, size, size, record["channels"]), np.uint8)


def crop(config: ConfigDict) -> crops.Crop:
    """The distribution of crops."""
    chosen = config.crop
    return crops.Crop(
        area=(chosen.area_min, chosen.area_max),
        ratio=(chosen.ratio_min, chosen.ratio_max),
        flip=chosen.flip_prob,
        fit=chosen.fit,
    )


def local_views(config: ConfigDict) -> crops.LocalViews | None:
    """The local views of multi-crop; None: there are none."""
    chosen = config.crop
    if not chosen.local_views:
        return None
    area = (chosen.local_area_min, chosen.local_area_max)
    return crops.LocalViews(chosen.local_views, chosen.local_size, crop(config)._replace(area=area))
