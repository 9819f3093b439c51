"""What a page is computed from: features of the images and their pictures, in one pass."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from byol_jax import data, evaluate, parallel
from byol_jax.errors import DataError
from byol_jax.runs import inputs, kinds
from byol_jax.runs import run as run_lib

TRAINED, UNTRAINED, PIXELS = "trained", "untrained", "pixels"
ROWS = {
    "random": UNTRAINED,
    "pixels": PIXELS,
    "raw": PIXELS,
}  # by the name of a baseline on the command line


class Images(NamedTuple):
    """Images of one split, as a page shows them."""

    source: data.ImageSource  # those that are shown, and those that cannot be decoded
    total: int  # images of the whole split
    index: np.ndarray  # int64 (n,), of each image in the source
    names: list[str]  # of each image
    features: dict[str, np.ndarray]  # float32 (n, d), by row: TRAINED and what it is compared with
    pictures: np.ndarray  # uint8 (n, side, side, channels)
    labels: np.ndarray | None  # int32 (n,)
    left_out: list[str]  # messages about images that cannot be decoded


def embedders(
    trained: run_lib.Trained, rows: list[str]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Functions from uint8 images to float32 features, by row."""
    embed_with = parallel.embedder(trained.learner)
    batch_size = inputs.eval_batch_size(trained.run.config)
    found = {TRAINED: functools.partial(embed_with(trained.state), batch_size=batch_size)}
    if UNTRAINED in rows:
        state = run_lib.initial_state(trained.learner, trained.run.config)
        found[UNTRAINED] = functools.partial(embed_with(state), batch_size=batch_size)
    if PIXELS in rows:
        found[PIXELS] = evaluate.pixels
    return found


def compute(
    trained: run_lib.Trained,
    source: data.ImageSource,
    embed: dict[str, Callable[[np.ndarray], np.ndarray]],
    *,
    limit: int,
    side: int,
) -> Images:
    """Features and pictures of some images of a source, which are decoded once.

    Args:
      trained: the run.
      source: of images. Those that cannot be decoded are left out.
      embed: of `embedders`.
      limit: of more images, this many are drawn at random, always the same.
      side: height and width of the pictures. They are the central squares that the encoder sees.

    Raises:
      DataError: there is no image, or none that can be decoded; features are not finite.
    """
    config = trained.run.config
    total, name = source.num_examples, source.name
    if limit < total:
        chosen = np.random.default_rng(0).permutation(total)[:limit]
        source = data.subset(source, chosen, name)
    record = kinds.of(config).encoder_record(config) | {"training": {"config": config.to_dict()}}
    seen = kinds.of(config).eval_view(record)
    views = [seen, data.CentralView(side, seen.crop_fraction)]
    failed: dict[int, str] = {}
    batches = data.eval_views(
        source,
        views,
        batch_size=inputs.eval_batch_size(config),
        on_decode_error=failed.__setitem__,
    )

    def both(images: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        return {name: row(images[0]) for name, row in embed.items()} | {"pictures": images[1]}

    found, labels = evaluate.collect(both, batches, source.num_examples)
    pictures, found = found["pictures"], {name: found[name] for name in embed}
    for row, values in found.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"the features of {name} ({row}) contain NaN or infinity: choose a "
                "checkpoint from before training diverged with --step."
            )
    index = np.setdiff1d(np.arange(source.num_examples), [*failed])
    names = source.names()
    return Images(
        source,
        total,
        index,
        [names[i] for i in index],
        found,
        pictures,
        None if source.num_classes is None else labels,
        [*failed.values()],
    )
