"""The pictures of a run: what is drawn, and that the first needs no matplotlib."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from byol_jax.train import plots


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_a_view_is_drawn(tmp_path, channels):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, (4, size, size, channels), np.uint8) for size in (40, 40, 20)]
    plots.draw_rows(tmp_path / "views.png", {str(i): row / 255 for i, row in enumerate(rows)})
    picture = np.asarray(Image.open(tmp_path / "views.png"))
    side = 3 * 40 + plots.GAP  # enlarged three times
    assert picture.shape == (plots.TITLE + 3 * side, plots.LABEL + 4 * side, 3)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = plots.TITLE + row * side, plots.LABEL + column * side
            drawn = picture[top : top + 3 * len(image), left : left + 3 * len(image)]
            assert (drawn == image.repeat(3, 0).repeat(3, 1)).all()


def test_curves_of_the_metrics_present(tmp_path):
    rows = [
        {"step": step, "byol_loss": 2.0 / step, "probe_loss": None, "probe_test_top1": 0.5}
        for step in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plots.curves(tmp_path / "curves.png", tmp_path / "metrics.jsonl")
    assert np.asarray(Image.open(tmp_path / "curves.png")).min() < 128  # something is drawn


def test_the_first_step_needs_no_matplotlib_and_no_torch():
    program = (
        "import sys; import byol_jax.train.loop; "
        "sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
