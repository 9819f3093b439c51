"""Two plots of a run: view pairs that it trains on (views.png) and metrics by step (curves.png)."""

import functools
import io
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from byol_jax import byol, parallel
from byol_jax.objectives import OBJECTIVES
from byol_jax.runs.paths import AnyPath, write_atomically
from byol_jax.train.metrics import read_rows

VIEWS = 8  # pairs in the picture
MIN_PIXELS = 96  # smaller views are enlarged
CURVES = {  # titles and metrics
    "Loss": (*(f"{name}_loss" for name in OBJECTIVES), "negatives_loss", "probe_loss"),
    "Spread (0: collapsed)": ("embedding_std", "projection_std"),
    "Effective rank": ("embedding_rank", "projection_rank"),
    "Accuracy": ("knn_test_top1", "probe_test_top1", "probe_train_top1"),
}
GAP, LABEL, TITLE = 4, 60, 30  # pixels between views, for the names of rows, and for the title


def first_views(path: AnyPath, learner: byol.Learner, state: byol.State, batch: byol.Batch) -> None:
    """Draws the first view pairs of a batch, before and after augmentation.

    Args:
      path: the PNG to write.
      learner: its `augment` is an `augment.image.Policy`.
      state: replicated.
      batch: on the devices; examples uint8 (batch, 2, height, width, channels).
    """
    few = parallel.first_rows(batch, VIEWS)
    augmented = np.stack(_augment_fn(learner)(parallel.local(state), few))
    policy = learner.augment
    augmented = augmented * np.array(policy.std) + np.array(policy.mean)
    view_pairs(path, few.examples.swapaxes(0, 1), augmented)


@functools.lru_cache(parallel.KEPT)
def _augment_fn(learner: byol.Learner) -> Callable[..., tuple]:
    # Compiled, because hundreds of small programs would take longer.
    return jax.jit(lambda state, batch: byol.augment_batch(learner, byol.step_key(state), batch))


def view_pairs(path: AnyPath, crops: np.ndarray, augmented: np.ndarray) -> None:
    """Draws view pairs, one column per image.

    Args:
      path: the PNG to write.
      crops: uint8 (2, n, height, width, channels), before the photometric augmentation.
      augmented: float (2, n, height, width, channels) in 0..1, after it.
    """
    augmented = np.clip(np.rint(255 * augmented), 0, 255).astype(np.uint8)
    names = ("crop 1", "view 1", "crop 2", "view 2")
    rows = (crops[0], augmented[0], crops[1], augmented[1])
    _, count, height, width, _ = crops.shape
    # Without interpolation, which would add blur that the networks do not see.
    scale = -(-MIN_PIXELS // min(height, width))
    across, down = scale * width + GAP, scale * height + GAP
    size = (LABEL + count * across, TITLE + len(rows) * down)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    draw.text((LABEL, TITLE / 2), "What the two networks see", "black", font, anchor="lm")
    for row, (name, images) in enumerate(zip(names, rows, strict=True)):
        top = TITLE + row * down
        draw.text((GAP, top + down / 2), name, "black", font, anchor="lm")
        for column, image in enumerate(images):
            image = image[..., 0] if image.shape[-1] == 1 else image
            image = Image.fromarray(image.repeat(scale, 0).repeat(scale, 1))
            picture.paste(image, (LABEL + column * across, top))
    png = io.BytesIO()
    picture.save(png, format="png", compress_level=1)
    write_atomically(path, png.getvalue())


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
