"""Your own images with texts about them: BYOL between an image and its text, for a GPU.

    byol-jax pretrain --config=image_text --workdir=DIR --config.data.source=image_text:PATH

`PATH` is a file, or a folder of train.jsonl or train.csv (and test.*, with
--config.data.test_split=test), with the fields image and text: docs/modalities.md. ResNet-50 at 224
pixels for images, and the encoder of text.py for texts. Not a published recipe, and not run at this
size.

Images are not flipped, as texts may speak of left and right; where yours do not, add
--config.crop.flip_prob=0.5. Crops are of most of an image, so that what the text is about is in
them, and colours are changed little, as texts name them.
"""

from ml_collections import ConfigDict

from byol_jax.runs import config as config_lib


def get_config() -> ConfigDict:
    """Returns the settings."""
    config = config_lib.default("image_text")
    config.epochs = 100
    config.batch_size = 512
    config.crop.area_min = 0.5
    config.crop.flip_prob = 0.0
    image, text = config.views.view1, config.views.view2
    image.jitter_prob = 0.8
    image.brightness = image.contrast = 0.4
    image.saturation = 0.2
    image.hue = 0.0
    image.gray_prob = 0.0
    image.blur_prob = 0.0
    text.span_share = 0.3
    text.delete_prob = 0.1
    config.encoder.name = "resnet50"
    config.embedding_size = 512
    config.heads.hidden_size = 2048
    config.heads.output_size = 256
    config.target.tau_base = 0.99
    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 5e-4
    config.optimizer.warmup_epochs = 1.0
    return config
