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
from byol_jax.errors import ConfigError, DataError, UserError
from byol_jax.evaluate import label_free
from byol_jax.export.convert.weights import open_weights
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import inputs, kinds, paths
from byol_jax.runs import run as run_lib
from byol_jax.runs.kinds import images

ESTIMATED_BATCHES = 4  # of `estimate`


class Row(NamedTuple):
    """An encoder that is evaluated: a row of the table."""

    embed: Callable[[byol.Tree], np.ndarray]  # a batch of n examples -> float32 (n, d)
    view: Any  # what it sees of an example: of an image, a data.CentralView
    encoder: encoder_lib.Encoder | None = None  # the examples themselves, and a part, have none


def of_run(trained: run_lib.Trained, baselines: list[str]) -> dict[str, Row]:
    """The run's encoder, "byol", and baselines: "random", the same with other weights; "pixels".

    Of a kind that has parts, also each part alone. Other kinds than images have "raw" in
    place of "pixels".
    """
    config = trained.run.config
    kind = kinds.of(config)
    embed_with = parallel.embedder(trained.learner)
    batch_size = inputs.eval_batch_size(config)
    states = {"byol": trained.state}
    if "random" in baselines:
        states["random"] = run_lib.initial_state(trained.learner, config)
    rows = {}
    for name, state in states.items():
        embed = embed_with(state)  # sends the state to the devices: once, not for every batch
        encoder = encoder_lib.Model(trained._replace(state=state))
        view = kind.eval_view(encoder.config)
        rows[name] = Row(partial(embed, batch_size=batch_size), view, encoder)
        for part, take in kind.parts(config).items():
            rows[f"{name}, {part}"] = Row(partial(_embed_part, embed, take, batch_size), view)
    if kind.raw_name and {"pixels", "raw"} & set(baselines):
        raw = partial(kind.raw, config)
        rows[kind.raw_name] = Row(raw, view)
        for part, take in kind.parts(config).items():
            rows[f"{kind.raw_name}, {part}"] = Row(partial(_raw_part, raw, take), view)
    return rows


def _embed_part(embed: Callable, take: Callable, batch_size: int, examples: Any) -> np.ndarray:
    return embed(take(examples), batch_size)


def _raw_part(raw: Callable, take: Callable, examples: Any) -> np.ndarray:
    return raw(take(examples))


def of_path(path: str, config: ConfigDict) -> Row:
    """The encoder at a path; raises UserError if it cannot be read or takes other images.

    As that of the run, it computes on all devices.
    """
    is_folder = paths.path(path).is_dir()
    try:
        encoder = byol_jax.load(path) if is_folder else open_weights(path)
    except UserError as error:
        raise UserError(f"--against={path}: {error}") from error
    kind = kinds.of(config)
    if encoder.kind is not kind:
        raise ConfigError(
            f"--against={path} takes {encoder.kind.unit}, but the run's data are {kind.unit}: name "
            "an encoder of the same kind."
        )
    kind.check_same_inputs(f"--against={path}", config, encoder.config)
    encoder = encoder.encoder
    embed = parallel.embedder(encoder, _embed, _all)(encoder.variables)
    batch_size = inputs.eval_batch_size(config)
    return Row(partial(embed, batch_size=batch_size), kind.eval_view(encoder.config), encoder)


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
    batches = kinds.of(config).eval_views(
        config, source, views, inputs.eval_batch_size(config), skipping(config, left_out)
    )
    with progress(source.name, source.num_examples, kinds.of(config).unit) as shown:

        def embed(seen: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
            images = dict(zip(views, seen, strict=True))
            found = {name: row.embed(images[row.view]) for name, row in rows.items()}
            shown.update(len(next(iter(found.values()))))
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
    batches = kinds.of(config).eval_views(
        config, source, views, inputs.eval_batch_size(config), skipping(config, {})
    )
    sizes, images, start = {}, 0, time.perf_counter()
    for number, (seen, _) in enumerate(itertools.islice(batches, ESTIMATED_BATCHES + 1)):
        if number == 1:
            images, start = 0, time.perf_counter()
        of_view = dict(zip(views, seen, strict=True))
        for name, row in rows.items():
            sizes[name] = row.embed(of_view[row.view]).shape[1]
        images += len(next(iter(jax.tree.leaves(seen))))
    return images / (time.perf_counter() - start), sizes


def views(
    rows: dict[str, Row],
    policy: Any,
    config: ConfigDict,
    source: data.Source,
    left_out: dict[str, None],
) -> dict[str, np.ndarray]:
    """Features of several views of some examples: by encoder, float32 (examples, views, d).

    Views are augmented by the policy, half of them as its first view and half as its second. Of a
    kind that has parts, rows that take one part alone, or the examples themselves, are left out.
    """
    kind, count = kinds.of(config), min(label_free.IMAGES, source.num_examples)
    if not kind.views_are_inputs:
        return {}
    batch_size = min(50, count)
    steps = count // batch_size
    if kind.parts(config):
        rows = {name: row for name, row in rows.items() if row.encoder is not None}

    @jax.jit
    def augment(step: jax.Array, examples: byol.Tree) -> list[byol.Tree]:
        """A batch of examples, as the policy takes them -> two views, as encoders take them."""
        count = len(jax.tree.leaves(examples)[0])
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step), count)
        return [kind.as_inputs(policy, view) for view in jax.vmap(policy)(keys, examples)[:2]]

    found: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for size, mine in by_size(rows):
        batches = _pairs(config, source, size, batch_size, steps, left_out)
        with progress(f"{label_free.VIEWS} views", steps * batch_size, kind.unit) as shown:
            for step, examples in enumerate(batches):
                both = jax.tree.map(np.asarray, augment(step, examples))
                for name, row in mine.items():
                    embedded = np.stack([row.embed(seen) for seen in both], axis=1)
                    embedded = embedded.reshape(-1, label_free.VIEWS, embedded.shape[-1])
                    found[name].append(embedded)
                shown.update(batch_size)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _pairs(
    config: ConfigDict,
    source: data.Source,
    size: int | None,
    batch_size: int,
    steps: int,
    left_out: dict[str, None],
) -> Iterator[byol.Tree]:
    """Batches for the policy: each of `batch_size` examples label_free.VIEWS / 2 times in a row."""
    times = label_free.VIEWS // 2
    if size is not None:
        crops = train_crops(config, source, size, batch_size, steps, label_free.VIEWS, left_out)
        for images, *_ in crops:
            yield images.reshape(-1, 2, *images.shape[2:])
        return
    report = skipping(config, left_out)
    limit = batch_size * steps
    for examples, _ in kinds.of(config).eval_batches(config, source, batch_size, limit, report):
        yield jax.tree.map(lambda x: np.repeat(x, times, axis=0), examples)


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
        on_decode_error=skipping(config, left_out),
    )


def by_size(rows: dict[str, Row]) -> Iterator[tuple[int | None, dict[str, Row]]]:
    """The image sizes, ascending, and the encoders that see images of each; None: other data."""
    sizes = {name: getattr(row.view, "image_size", None) for name, row in rows.items()}
    for size in sorted({*sizes.values()}, key=lambda size: size or 0):
        yield size, {name: row for name, row in rows.items() if sizes[name] == size}


def skipping(config: ConfigDict, left_out: dict[str, None]) -> Callable[[int, str], None] | None:
    """What adds messages about examples that cannot be read as keys; None: they are errors."""
    if config.data.on_decode_error != "skip":
        return None
    return lambda _, message: left_out.setdefault(message)


def progress(name: str, count: int, unit: str = "images") -> tqdm.tqdm:
    """A bar, in a terminal."""
    return tqdm.tqdm(desc=name, total=count, unit=f" {unit}", unit_scale=True, disable=None)
