"""Two pictures to look at: the view pairs that a run trains on, and its curves."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from byol_jax.runs.paths import AnyPath, write_atomically
from byol_jax.train.writers import read_metrics

SMALLEST = 96  # smaller views are enlarged, so that there is something to see
GAP, LABEL, TITLE = 4, 60, 30  # pixels between views, for the names of rows, and for the title


def view_pairs(path: AnyPath, crops: np.ndarray, augmented: np.ndarray) -> None:
    """Draws the pairs of views of a few images, one column for each image.

    Args:
      path: the PNG to write.
      crops: uint8 (2, n, height, width, channels), before the photometric half.
      augmented: float (2, n, height, width, channels) in 0..1, after it.
    """
    augmented = np.clip(np.rint(255 * augmented), 0, 255).astype(np.uint8)
    rows = [
        ("crop 1", crops[0]),
        ("view 1", augmented[0]),
        ("crop 2", crops[1]),
        ("view 2", augmented[1]),
    ]
    _, count, height, width, _ = crops.shape
    # By whole pixels: what is blurred in the picture is blurred for the networks.
    times = -(-SMALLEST // min(height, width))
    across, down = times * width + GAP, times * height + GAP
    size = (LABEL + count * across, TITLE + len(rows) * down)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    draw.text((LABEL, TITLE / 2), "What the two networks see", "black", font, anchor="lm")
    for row, (name, images) in enumerate(rows):
        top = TITLE + row * down
        draw.text((GAP, top + down / 2), name, "black", font, anchor="lm")
        for column, image in enumerate(images):
            image = image[..., 0] if image.shape[-1] == 1 else image
            image = Image.fromarray(image.repeat(times, 0).repeat(times, 1))
            picture.paste(image, (LABEL + column * across, top))
    png = io.BytesIO()
    picture.save(png, format="png", compress_level=1)
    write_atomically(path, png.getvalue())


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
    # Here, as it takes its time and a run that begins has no curves yet.
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
