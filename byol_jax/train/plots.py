"""Two plots of a run: view pairs that it trains on (views.png) and metrics by step (curves.png)."""

import functools
import io
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from byol_jax import byol, parallel
from byol_jax.objectives import OBJECTIVES
from byol_jax.runs.kinds import Kind
from byol_jax.runs.paths import AnyPath, write_atomically
from byol_jax.train.metrics import read_rows

VIEWS = 8  # pairs in the picture
MIN_PIXELS = 96  # smaller views are enlarged
CURVES = {  # titles and metrics
    "Loss": (*(f"{name}_loss" for name in OBJECTIVES), "negatives_loss", "probe_loss"),
    "Spread (0: collapsed)": ("embedding_std", "projection_std"),
    "Effective rank": ("embedding_rank", "projection_rank"),
    "RankMe": ("rankme",),
    "Accuracy": ("knn_test_top1", "probe_test_top1", "probe_train_top1"),
}
GAP, LABEL, TITLE = 4, 60, 30  # pixels between views, for the names of rows, and for the title


def first_views(
    path: AnyPath, kind: Kind, learner: byol.Learner, state: byol.State, batch: byol.Batch
) -> None:
    """Draws the first views of a batch: examples, and what the online network sees of them.

    Args:
      path: the PNG to write.
      kind: of data.
      learner: its `augment` is a policy of that kind.
      state: replicated.
      batch: on the devices.
    """
    few = parallel.first_rows(batch, VIEWS)
    views = _views_fn(learner)(parallel.local(state), few)
    draw_rows(path, kind.pictures(learner.augment, few.examples, views))


@functools.lru_cache(parallel.KEPT)
def _views_fn(learner: byol.Learner) -> Callable[..., tuple]:
    def views(state: byol.State, batch: byol.Batch) -> tuple:
        key = byol.step_key(state)
        views = byol.augment_batch(learner, key, batch)
        if learner.perturb is None:
            return views
        params, stats, positions = state.online_params, state.online_stats, batch.positions
        numbers = (0, 1, *range(4, 2 + len(views)))  # as in byol.loss_fn
        keys = [jax.random.fold_in(key, byol.NETWORK_KEYS + i) for i in numbers]
        return learner.perturb(learner, params, stats, views, keys, positions)

    # The networks may average over the axis of replicas: here there is one.
    on_one = jax.vmap(views, in_axes=(None, 0), axis_name=learner.axis_name or "replica")

    # Compiled, because hundreds of small programs would take longer.
    @jax.jit
    def of_one(state: byol.State, batch: byol.Batch) -> tuple:
        views = on_one(state, jax.tree.map(lambda x: x[None], batch))
        return jax.tree.map(lambda x: x[0], views)

    return of_one


def draw_rows(path: AnyPath, rows: dict[str, np.ndarray]) -> None:
    """Draws rows of images, one column per example.

    Args:
      path: the PNG to write.
      rows: by name, float (n, height, width, channels) in 0..1, drawn as by `as_picture`; the first
        of them the largest.
    """
    count, height, width, _ = next(iter(rows.values())).shape
    # Without interpolation, which would add blur that the networks do not see.
    scale = -(-MIN_PIXELS // height)
    down, right = scale * height + GAP, scale * width + GAP
    size = (LABEL + count * right, TITLE + len(rows) * down)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    draw.text((LABEL, TITLE / 2), "What the two networks see", "black", font, anchor="lm")
    for row, (name, images) in enumerate(rows.items()):
        top = TITLE + row * down
        draw.text((GAP, top + down / 2), name, "black", font, anchor="lm")
        for column, image in enumerate(np.clip(np.rint(255 * images), 0, 255).astype(np.uint8)):
            drawn = as_picture(image.repeat(scale, 0).repeat(scale, 1))
            picture.paste(drawn, (LABEL + column * right, top))
    png = io.BytesIO()
    picture.save(png, format="png", compress_level=1)
    write_atomically(path, png.getvalue())


def as_picture(image: np.ndarray) -> Image.Image:
    """An image, uint8 (height, width, channels): its first three channels, or one as gray."""
    return Image.fromarray(image[..., :3] if image.shape[-1] >= 3 else image[..., 0])


def curves(path: AnyPath, metrics: AnyPath) -> None:
    """Draws the metrics of CURVES that a metrics.jsonl has, by step."""
    rows = read_rows(metrics)
    present = {key for row in rows for key, value in row.items() if value is not None}
    panels = [(title, [key for key in keys if key in present]) for title, keys in CURVES.items()]
    panels = [(title, keys) for title, keys in panels if keys]
    if not panels:
        return
    # Imported late, because it takes time, and a run that begins has no curves yet.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(panels), 3.4))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for (title, keys), axis in zip(panels, axes, strict=True):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            marker = "." if len(points) < 30 else ""
            axis.plot(*zip(*points, strict=True), label=key, marker=marker)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    png = io.BytesIO()
    figure.savefig(png, dpi=100, format="png")
    write_atomically(path, png.getvalue())
