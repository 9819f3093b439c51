"""Two pictures to look at: the view pairs that a run trains on, and its curves."""

import io

import numpy as np
from matplotlib.figure import Figure

from byol_jax.files import AnyPath, write_whole
from byol_jax.writers import read_metrics


def view_pairs(path: AnyPath, crops: np.ndarray, augmented: np.ndarray) -> None:
    """Draws the pairs of views of a few images, one column for each image.

    Args:
      path: the PNG to write.
      crops: uint8 (2, n, height, width, channels), before the photometric half.
      augmented: float (2, n, height, width, channels) in 0..1, after it.
    """
    rows = [
        ("crop 1", crops[0]),
        ("view 1", augmented[0]),
        ("crop 2", crops[1]),
        ("view 2", augmented[1]),
    ]
    count = crops.shape[1]
    figure = Figure(figsize=(1.2 * count, 5.2))
    axes = figure.subplots(4, count, squeeze=False)
    for (name, images), row in zip(rows, axes, strict=True):
        for image, axis in zip(images, row, strict=True):
            gray = image.shape[-1] == 1
            top = 255 if image.dtype == np.uint8 else 1
            axis.imshow(image[..., 0] if gray else image, cmap="gray", vmin=0, vmax=top)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name)
    figure.suptitle("What the two networks see")
    figure.tight_layout()
    _save(figure, path)


def curves(path: AnyPath, metrics: AnyPath) -> None:
    """Draws loss, health and accuracy by step.

    Args:
      path: the PNG to write.
      metrics: a metrics.jsonl; what it does not have is not drawn.
    """
    rows = read_metrics(metrics)
    panels = [
        ("Loss", ("byol_loss", "probe_loss")),
        ("Spread (0: collapsed)", ("embedding_std", "projection_std")),
        ("Effective rank", ("embedding_rank", "projection_rank")),
        ("Accuracy", ("knn_test_top1", "probe_train_top1")),
    ]
    there = {key for row in rows for key, value in row.items() if value is not None}
    panels = [(title, [key for key in keys if key in there]) for title, keys in panels]
    panels = [(title, keys) for title, keys in panels if keys]
    if not panels:
        return
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
    _save(figure, path)


def _save(figure: Figure, path: AnyPath) -> None:
    image = io.BytesIO()
    figure.savefig(image, dpi=100, format="png")
    write_whole(path, image.getvalue())
