"""rho-BYOL (arXiv 2104.14558) with two clips: your own folder of videos, and the paper's encoder.

    byol-jax pretrain --config=rho_byol --workdir=DIR --config.data.source=folder:PATH

The paper pre-trains on Kinetics-400, about 240,000 videos, for 200 epochs: clips of 8 frames, each
8 frames from the next at 30 frames/s, at 224 pixels; the Slow pathway of SlowFast as encoder. The
numbers are those of the authors' published config (PySlowFast, BYOL_SlowR50_8x8): LARS, a learning
rate of 0.6 for 64 videos, 35 epochs of warm-up. Two are assumed: a batch of 512, which is 64 videos
on each of 8 machines; and that half of the clips are blurred, with a sigma from 0.1 to 2.

Unlike theirs:

- With more than two clips (--config.data.clips), those from the third on are for the online
  network alone: they predict the target's projections of the first two, and nothing predicts them.
- The shorter side of a frame is always 256 pixels (theirs: 256 to 320), and crops are taken from
  the central square, not from the whole frame.
- Colours change as in BYOL, and not as torchvision's ColorJitter does it with the same strengths.
  Brightness is added, uniform from -0.6 to 0.6, where theirs is a factor from 0.4 to 1.6: so about
  a quarter of the values become 0 or 1, theirs 7% (on normal noise of `mean` and `std`, with
  brightness alone). Contrast is a factor about the mean of each channel of each frame, and
  saturation one in HSV; theirs are mixtures with gray.

Not run on Kinetics.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default("video")
    config.epochs = 200
    config.batch_size = 512
    config.data.frames = 8
    config.data.seconds = 64 / 30
    config.crop.area_min = 0.2
    config.crop.area_max = 0.766
    config.crop.fit = "retry"
    for view in (config.views.view1, config.views.view2):
        view.brightness = view.contrast = view.saturation = 0.6
        view.hue = 0.15
        view.blur_prob = 0.5
        view.solarize_prob = 0.0
    config.views.mean = (0.45, 0.45, 0.45)
    config.views.std = (0.225, 0.225, 0.225)
    config.encoder.name = "slow_r50"
    config.target.tau_base = 0.996
    config.optimizer.name = "lars"
    config.optimizer.base_learning_rate = 2.4
    config.optimizer.weight_decay = 1e-6
    config.optimizer.warmup_epochs = 35.0
    return config
