"""The encoders that `byol-jax evaluate` compares, and their features in common passes."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict

import byol_jax
from byol_jax import byol, data, evaluate, parallel
from byol_jax.augment import image as image_augment
from byol_jax.errors import ConfigError, DataError, UserError
from byol_jax.evaluate import label_free
from byol_jax.export.convert.weights import open_weights
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import inputs, paths
from byol_jax.runs import run as run_lib
from byol_jax.runs.kinds import images

ESTIMATED_BATCHES = 4  # of `estimate`


class Row(NamedTuple):
    """An encoder that is evaluated: a row of the table."""

    embed: Callable[[np.ndarray], np.ndarray]  # uint8 (n, size, size, channels) -> float32 (n, d)
    view: data.CentralView  # what it sees of an image
    encoder: encoder_lib.Encoder | None = None  # raw pixels have none


def of_run(trained: run_lib.Trained, baselines: list[str]) -> dict[str, Row]:
    """The run's encoder, "byol", and baselines: "random", the same with other weights; "pixels"."""
    config = trained.run.config
    embed_with = parallel.embedder(trained.learner)
    batch_size = inputs.eval_batch_size(config)
    view = data.CentralView(config.data.image_size, config.crop.test_fraction)

    def row(state: byol.State) -> Row:
        embed = embed_with(state)  # sends the state to the devices: once, not for every batch
        encoder = encoder_lib.Model(trained._replace(state=state))
        return Row(lambda images: embed(images, batch_size), view, encoder)

    rows = {"byol": row(trained.state)}
    if "random" in baselines:
        rows["random"] = row(run_lib.initial_state(trained.learner, config))
    if "pixels" in baselines:
        rows["pixels"] = Row(evaluate.pixels, view)
    return rows


def of_path(path: str, config: ConfigDict) -> Row:
    """The encoder at a path; raises UserError if it cannot be read or takes other images.

    As that of the run, it computes on all devices.
    """
    is_folder = paths.path(path).is_dir()
    try:
        encoder = byol_jax.load(path) if is_folder else open_weights(path)
    except UserError as error:
        raise UserError(f"--against={path}: {error}") from error
    if encoder.config["channels"] != config.data.channels:
        raise ConfigError(
            f"--against={path} takes images of {encoder.config['channels']} channels, but the "
            f"run's have {config.data.channels}: name an encoder of as many channels."
        )
    encoder = encoder.encoder
    embed = parallel.embedder(encoder, _embed, _all)(encoder.variables)
    batch_size = inputs.eval_batch_size(config)
    view = data.CentralView(encoder.config["image_size"], encoder.crop_fraction)
    return Row(lambda images: embed(images, batch_size), view, encoder)


def _embed(encoder: encoder_lib.Encoder, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    return encoder.output_fn(encoder.fast_module())(variables, images)


def _all(variables: dict[str, Any]) -> dict[str, Any]:
    return variables


def features(
    rows: dict[str, Row],
    config: ConfigDict,
    source: data.Source,
    left_out: dict[str, None],
    directory: Path | None = None,
    dtype: str = "float32",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features by encoder, float32 (n, d), and labels, int32 (n,), in one pass over a source.

    Images that cannot be decoded become keys of `left_out`, if the config skips them. Features are
    in files of `directory` with this dtype, if it is given, which stay until somebody removes them.
    """
    views = list(dict.fromkeys(row.view for row in rows.values()))
    batches = data.eval_views(
        source,
        views,
        batch_size=inputs.eval_batch_size(config),
        on_decode_error=_skipping(config, left_out),
    )
    with progress(source.name, source.num_examples) as shown:

        def embed(seen: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
            images = dict(zip(views, seen, strict=True))
            found = {name: row.embed(images[row.view]) for name, row in rows.items()}
            shown.update(len(seen[0]))
            return found

        if directory is None:
            return evaluate.collect(embed, batches, source.num_examples)
        allocate = partial(_map, directory, jnp.dtype(dtype))
        return evaluate.collect(embed, batches, source.num_examples, allocate)


def _map(directory: Path, dtype: np.dtype, shape: tuple[int, ...], _: Any) -> np.ndarray:
    """An array of this dtype in a new file, which is mapped into memory."""
    handle, name = tempfile.mkstemp(suffix=".bin", dir=directory)
    try:  # takes the room at once: a full disk is an error here, and would be a crash later
        os.posix_fallocate(handle, 0, int(np.prod(shape)) * dtype.itemsize)
    except OSError as error:
        raise DataError(
            f"--features_dir={directory.parent} cannot be used ({error.strerror}): name a folder "
            "with room for the features."
        ) from error
    finally:
        os.close(handle)
    return np.memmap(name, mode="r+", dtype=dtype, shape=shape)


def estimate(
    rows: dict[str, Row], config: ConfigDict, source: data.Source
) -> tuple[float, dict[str, int]]:
    """Images per second through all encoders, and the size of the features of each.

    Measured on a few batches, after one that is compiled; of fewer images, with the compilation.
    """
    views = list(dict.fromkeys(row.view for row in rows.values()))
    batches = data.eval_views(
        source,
        views,
        batch_size=inputs.eval_batch_size(config),
        on_decode_error=_skipping(config, {}),
    )
    sizes, images, start = {}, 0, time.perf_counter()
    for number, (seen, _) in enumerate(itertools.islice(batches, ESTIMATED_BATCHES + 1)):
        if number == 1:
            images, start = 0, time.perf_counter()
        of_view = dict(zip(views, seen, strict=True))
        for name, row in rows.items():
            sizes[name] = row.embed(of_view[row.view]).shape[1]
        images += len(seen[0])
    return images / (time.perf_counter() - start), sizes


def views(
    rows: dict[str, Row],
    policy: image_augment.Policy,
    config: ConfigDict,
    source: data.Source,
    left_out: dict[str, None],
) -> dict[str, np.ndarray]:
    """Features of several views of some images: by encoder, float32 (images, views, d).

    Views are augmented by the policy, half of them as its first view and half as its second.
    """
    count = min(label_free.IMAGES, source.num_examples)
    batch_size = min(50, count)
    steps = count // batch_size

    @jax.jit
    def augment(step: jax.Array, pairs: jax.Array) -> jax.Array:
        """uint8 (n, 2, size, size, channels) crops -> (n, 2, ...) views, likewise."""
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step), len(pairs))
        seen = jnp.stack(jax.vmap(policy)(keys, pairs), axis=1)
        seen = seen * jnp.array(policy.std) + jnp.array(policy.mean)
        return jnp.clip(jnp.round(255 * seen), 0, 255).astype(jnp.uint8)

    found: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for size, mine in by_size(rows):
        batches = train_crops(config, source, size, batch_size, steps, label_free.VIEWS, left_out)
        with progress(f"{label_free.VIEWS} views", steps * batch_size) as shown:
            for step, (crops, *_) in enumerate(batches):
                pairs = crops.reshape(-1, 2, *crops.shape[2:])
                seen = np.asarray(augment(step, pairs)).reshape(-1, *crops.shape[2:])
                for name, row in mine.items():
                    embedded = row.embed(seen)
                    found[name].append(embedded.reshape(batch_size, label_free.VIEWS, -1))
                shown.update(batch_size)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def train_crops(
    config: ConfigDict,
    source: data.Source,
    size: int,
    batch_size: int,
    steps: int,
    views: int,
    left_out: dict[str, None],
    start_step: int = 0,
) -> Iterator[byol.Batch]:
    """Batches of random crops and flips, as in the run, of this size, up to step `steps`."""
    return data.train_batches(
        source,
        batch_size=batch_size,
        image_size=size,
        seed=config.seed,
        num_steps=steps,
        start_step=start_step,
        crop=images.crop(config),
        views=views,
        on_decode_error=_skipping(config, left_out),
    )


def by_size(rows: dict[str, Row]) -> Iterator[tuple[int, dict[str, Row]]]:
    """The image sizes, ascending, and the encoders that see images of each."""
    for size in sorted({row.view.image_size for row in rows.values()}):
        yield size, {name: row for name, row in rows.items() if row.view.image_size == size}


def _skipping(config: ConfigDict, left_out: dict[str, None]) -> Callable[[int, str], None] | None:
    if config.data.on_decode_error != "skip":
        return None
    return lambda _, message: left_out.setdefault(message)


def progress(name: str, images: int) -> tqdm.tqdm:
    """A bar, in a terminal."""
    return tqdm.tqdm(desc=name, total=images, unit="image", unit_scale=True, disable=None)
