"""The images that a config names: its sources, and their batches."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, data, parallel
from byol_jax.data import on_device
from byol_jax.errors import DataError
from byol_jax.runs import build
from byol_jax.runs import config as config_lib


def open_split(config: ConfigDict, split: str) -> data.Source:
    """A split of the config's source.

    Raises:
      DataError: it cannot be opened, or the config is of an imported run, which names no data.
    """
    if config.data.source == config_lib.UNKNOWN_SOURCE:
        raise DataError(
            "This run was imported and does not record its training data: name images, such as "
            "--data=folder:PATH or --data=tfds:NAME."
        )
    name, data_dir, channels = config.data.source, config.data.dir or None, config.data.channels
    return data.open_source(name, split, data_dir=data_dir, channels=channels)


def open_sources(config: ConfigDict) -> tuple[data.Source, data.Source | None]:
    """The training images, and the held-out ones for kNN if both have labels."""
    source = open_split(config, config.data.train_split)
    split = config.data.test_split if config.evaluation.every_steps else ""
    if source.num_classes is None or not split:
        return source, None
    return source, data.match_classes(source, open_split(config, split))


def train_batches(
    config: ConfigDict,
    source: data.Source,
    start_step: int,
    total_steps: int,
    on_decode_error: Callable[[int, str], None] | None = None,
) -> Iterator[byol.Batch]:
    """This process's rows of the batches from `start_step` to `total_steps`, on its devices.

    With `on_decode_error`, which receives the step and a message, images that cannot be decoded are
    replaced; without it they raise DataError. `config.data.placement` is "host" or "device".
    """
    accum_steps = config.accum_steps
    plan = {
        "batch_size": config.batch_size,
        "image_size": config.data.image_size,
        "seed": config.seed,
        "num_steps": total_steps,
        "start_step": start_step,
        "crop": build.crop(config),
        "local": build.local_views(config),
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


def input_bound_hint(config: ConfigDict, source: data.Source) -> str:
    """What would make the training batches of a run come faster."""
    if config.data.placement == "device":
        return "The device computes the crops itself: the time left is the host's own for a step."
    if isinstance(source, data.ArraySource) and on_device.fits(source):
        return "In a new run, config.data.placement=device lets the device compute the crops."
    return (
        "Give it more processor cores, let other machines decode (config.data.service), or store "
        "the images in files not much larger than config.data.image_size."
    )


def eval_batch_size(config: ConfigDict) -> int:
    """Images of a process's batch in evaluation: for each device as in training, at most 256."""
    share = config_lib.micro_batch_size(config) // jax.process_count()
    return min(share, 256 * jax.local_device_count())


def eval_batches(
    config: ConfigDict,
    source: data.Source,
    *,
    limit: int | None = None,
    on_decode_error: Callable[[str], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Central crops and labels; see `data.eval_batches`.

    With `on_decode_error`, which receives a message, images that cannot be decoded are left out;
    without it they raise DataError. Without a limit it yields all examples.
    """
    return data.eval_batches(
        source,
        batch_size=eval_batch_size(config),
        image_size=config.data.image_size,
        crop_fraction=config.crop.test_fraction,
        limit=limit,
        on_decode_error=on_decode_error and (lambda _, message: on_decode_error(message)),
    )
