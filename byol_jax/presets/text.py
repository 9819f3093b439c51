"""Your own texts: a small transformer from random weights, for a GPU.

    byol-jax pretrain --config=text --workdir=DIR --config.data.source=text:PATH

`PATH` is a file, or a folder of train.txt, .jsonl or .csv (and test.*, with
--config.data.test_split=test): docs/modalities.md. Not a published recipe, and not run at this
size. The views leave out words and change their order; with span_share, delete_prob and
shuffle_distance 0 (of both --config.views.view1 and view2) they differ by dropout alone, as in
SimCSE (arXiv 2104.08821).
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default("text")
    config.epochs = 100
    config.batch_size = 512
    for view in (config.views.view1, config.views.view2):
        view.span_share = 0.5
        view.delete_prob = 0.2
        view.shuffle_distance = 2
    config.encoder.name = "text_transformer"
    config.heads.hidden_size = 1024
    config.heads.output_size = 256
    config.target.tau_base = 0.99
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 5e-4
    config.optimizer.warmup_epochs = 1.0
    return config
