"""The pictures of a run: what is drawn, and that the first needs no matplotlib."""

import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, tiny_resnet_config

from byol_jax import byol, parallel
from byol_jax.runs import build
from byol_jax.runs.kinds.images import Images
from byol_jax.runs.resolve import resolve
from byol_jax.train import plots


@pytest.fixture(autouse=True)
def drawn(pictures):
    with pictures():
        yield


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


def test_adversarial_views_are_drawn_as_the_online_network_sees_them(monkeypatch, tmp_path):
    config = tiny_config()
    config.augment.adversarial_norm = 0.5
    config, _ = resolve(config)
    learner = build.make_learner(config, lambda step: 0.1, 6, None, parallel.AXIS)
    examples = np.random.default_rng(0).integers(0, 256, (8, 2, 16, 16, 1), np.uint8)
    batch = byol.Batch(examples, None, np.arange(8, dtype=np.int32))
    state = byol.init(learner, 0, batch)
    drawn = {}
    monkeypatch.setattr(plots, "draw_rows", lambda path, rows: drawn.update(rows))
    on_devices = parallel.device_put_batch(batch)
    plots.first_views(tmp_path, Images(), learner, parallel.replicate(state), on_devices)
    few = parallel.first_rows(on_devices, plots.VIEWS)
    augment = jax.jit(functools.partial(byol.augment_batch, learner))
    for i, clean in enumerate(augment(byol.step_key(state), few), 1):
        change = (drawn[f"view {i}"] - 0.5) / 0.25 - clean
        np.testing.assert_allclose(np.sqrt((change**2).sum((1, 2, 3))), 0.5, rtol=1e-4)


def test_local_views_are_drawn_below_the_others(monkeypatch, tmp_path):
    config = tiny_resnet_config()
    config.crop.local_views, config.crop.local_size = 2, 8
    for view in (config.views.view1, config.views.view2):
        view.gray_prob = view.solarize_prob = 0.0
    config.views.view1.vertical_flip_prob = 1.0  # of the local views too
    config, _ = resolve(config)
    learner = build.make_learner(config, lambda step: 0.1, 6, None, parallel.AXIS)
    rng = np.random.default_rng(0)
    sizes = {"global": (8, 2, 16, 16, 1), "local": (8, 2, 8, 8, 1)}
    crops = {name: rng.integers(0, 256, size, np.uint8) for name, size in sizes.items()}
    batch = byol.Batch(crops, None, np.arange(8, dtype=np.int32))
    blank = byol.State(np.int32(0), np.uint32(0), *[{}] * 5)
    drawn = {}
    monkeypatch.setattr(plots, "draw_rows", lambda path, rows: drawn.update(rows))
    state, on_devices = parallel.replicate(blank), parallel.device_put_batch(batch)
    plots.first_views(tmp_path, Images(), learner, state, on_devices)
    assert list(drawn) == ["crop 1", "view 1", "crop 2", "view 2", "local 1", "local 2"]
    few = parallel.first_rows(on_devices, plots.VIEWS).examples  # nothing changes their pixels
    flipped = few["global"][:, 0, ::-1] / 255
    np.testing.assert_allclose(drawn["view 1"], flipped, atol=1e-6)
    np.testing.assert_allclose(drawn["view 2"], few["global"][:, 1] / 255, atol=1e-6)
    for i in (0, 1):
        flipped = few["local"][:, i, ::-1] / 255
        np.testing.assert_allclose(drawn[f"local {i + 1}"], flipped, atol=1e-6)


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
