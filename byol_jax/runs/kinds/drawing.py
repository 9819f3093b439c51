"""Pictures of what is no image, by Matplotlib."""

import textwrap
import warnings
from typing import Any

import numpy as np

LINE = 34  # characters of texts
INCHES = (2.2, 0.13)  # width of a picture of a text, and height of a line
MIN_LINES = 8


def new_figure(width: float, height: float, dpi: int) -> Any:
    """An empty Matplotlib figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: takes time
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def columns(figure: Any, count: int) -> np.ndarray:
    """The columns of a figure as pictures: float (count, height, width, 3) in 0..1."""
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    side = picture.shape[1] // count
    return np.stack([picture[:, i * side : (i + 1) * side] for i in range(count)])


def texts(rows: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Pictures of texts by row: float (n, height, width, 3) in 0..1, all of one size.

    Long lines are wrapped, and those of a text stay apart.
    """
    wrapped = {name: [_wrapped(text) for text in found] for name, found in rows.items()}
    lines = 1 + max(text.count("\n") for found in wrapped.values() for text in found)
    width, height = INCHES[0], INCHES[1] * max(lines + 1, MIN_LINES)
    pictures = {}
    for name, found in wrapped.items():
        figure = new_figure(width * len(found), height, dpi=100)
        for i, text in enumerate(found):
            place = ((i + 0.02) / len(found), 0.98)
            figure.text(*place, text, size=7, va="top", parse_math=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that the font lacks
            pictures[name] = columns(figure, len(found))
    return pictures


def _wrapped(text: str) -> str:
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, LINE))


def of_one_size(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pictures (n, height, width, 3) of all rows as large as the largest, on white.

    Smaller ones are repeated by pixels as often as they fit.
    """
    height, width = (max(row.shape[axis] for row in rows.values()) for axis in (1, 2))
    found = {}
    for name, row in rows.items():
        times = min(height // row.shape[1], width // row.shape[2])
        row = row.repeat(times, 1).repeat(times, 2)
        margins = [(0, 0), (0, height - row.shape[1]), (0, width - row.shape[2]), (0, 0)]
        found[name] = np.pad(row, margins, constant_values=1)
    return found
