"""Images with texts about them: an image is one view of a pair, and the text the other."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, models
from byol_jax.augment import image as image_augment
from byol_jax.augment import image_text as augment
from byol_jax.augment import text as text_augment
from byol_jax.byol import Tree
from byol_jax.data.image_text import ImageTextSource, PairSource, open_image_text
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs.kinds import drawing, image_settings, text_settings
from byol_jax.runs.kinds.images import crop
from byol_jax.runs.kinds.indexed_kind import IndexedKind, arrays_alone, check_encoders
from byol_jax.runs.limits import limit

PREFIX = "image_text:"
PARTS = ("image", "text")
TEXT_ENCODER = "text_encoder"


class ImageText(IndexedKind):
    """{"image": uint8 (height, width, 3), "text": int32 (length,)}, tokens as of `Text`."""

    name = "image_text"
    unit = "pairs"
    input_meaning = "0 to 255, not normalised; and numbers of tokens of the vocabulary"
    raw_name = "raw"
    source_type = ImageTextSource
    more_encoders = {TEXT_ENCODER: "text_transformer"}  # noqa: RUF012 (see Kind)
    choices = image_settings.CHOICES
    at_least = (
        image_settings.AT_LEAST
        | text_settings.AT_LEAST
        | limit(1, "data.decode_size embedding_size")
    )
    at_most = (
        image_settings.AT_MOST
        | text_settings.AT_MOST
        | limit(2**16, "data.decode_size embedding_size")
    )

    def add_settings(self, config):  # noqa: D102 (see Kind, here and below)
        # Images are decoded to this height and width: the shorter side is resized, and a part of
        # the longer one is kept, in training a random one. Crops are taken from that.
        config.data.decode_size = 256
        config.data.image_size = 224
        text_settings.add(config)
        image_settings.add_views(config)  # of view 1
        with config.views.unlocked():
            config.views.view2 = ConfigDict(dataclasses.asdict(text_augment.View()))
        # Numbers of an embedding, to which a linear map brings the features of each encoder.
        config.embedding_size = 512

    def resolve(self, config):  # noqa: D102
        image_settings.check_moments(config, 3)

    def check(self, config, encoder):  # noqa: D102
        del encoder
        image_settings.check_decode_size(config)
        if config.target.encoder.name:
            raise ConfigError(
                f"config.target.encoder.name={config.target.encoder.name} is not for pairs of "
                "images and texts: leave it out; config.text_encoder is the encoder of texts."
            )
        image_settings.check_views(config, config.data.image_size, "data.image_size", ("view1",))
        text_settings.check(config)
        images = {"images": self.view_shapes(config)[0]}
        check_encoders(self, config, images, "choose an encoder of images", ("encoder",))
        view = self.more_views(config)[TEXT_ENCODER]
        texts, advice = {"texts": view.shape}, "choose text_transformer"
        check_encoders(self, config, texts, advice, (TEXT_ENCODER,), view.dtype)

    def fit_to(self, config: ConfigDict, source: ImageTextSource) -> None:  # noqa: D102
        self.check_source(config, source)
        text_settings.fit_to(config, source.texts)

    def check_source(self, config, source):
        """Raises DataError unless the images of a source are of the run's size."""
        super().check_source(config, source)
        if source.size != config.data.decode_size:
            raise DataError(
                f"{source.name} was opened with size={source.size}, and the run has "
                f"config.data.decode_size={config.data.decode_size}."
            )

    def wrap(  # noqa: D102
        self,
        record: dict[str, Any],
        make: Callable[..., nn.Module],
        axis_name: str | None = None,
    ) -> nn.Module:
        encoders = {"image": make(), "text": make(record[TEXT_ENCODER])}
        sizes = self.sizes(record)
        encoders = {name: models.with_fields(one, **sizes) for name, one in encoders.items()}
        return models.ByArray(encoders, record["embedding_size"], axis_name)

    def sizes(self, record):
        """How many tokens there are."""
        return {"num_tokens": text_settings.num_tokens(record)}

    def view_shapes(self, config):
        """Of the image."""
        size = config.data.image_size
        return [(size, size, 3)]

    def more_views(self, config):  # noqa: D102
        return {TEXT_ENCODER: jax.ShapeDtypeStruct((config.data.length,), jnp.int32)}

    def describe(self, config):  # noqa: D102
        chosen = config.data
        return (
            f"{chosen.image_size} pixels, and {config.text_encoder.name} at {chosen.length} of "
            f"{len(chosen.vocabulary)} tokens"
        )

    def open_split(self, config: ConfigDict, split: str) -> ImageTextSource:  # noqa: D102
        spec = config.data.source
        if not spec.startswith(PREFIX):
            raise ConfigError(
                f"config.data.source={spec} must be image_text:PATH: a preset of image_text reads "
                ".jsonl and .csv files of images and texts."
            )
        return open_image_text(spec.removeprefix(PREFIX), split, config.data.decode_size)

    def examples(self, config: ConfigDict, source: ImageTextSource) -> PairSource:  # noqa: D102
        return PairSource(source, tuple(config.data.vocabulary), config.data.length)

    def parts(self, config):
        """The image alone, and the text alone."""
        del config
        return arrays_alone(PARTS)

    def check_same_inputs(self, given, config, record):  # noqa: D102
        text_settings.check_same(given, self.encoder_record(config), record)

    def raw(self, config: ConfigDict, examples: dict[str, np.ndarray]) -> np.ndarray:
        """Pixels of images shrunk to 32 pixels, log(1 + counts) of tokens, or both."""
        # Late: `byol_jax.load` needs none of it.
        from byol_jax import evaluate
        from byol_jax.evaluate.features import unit_rows

        found = []
        if "image" in examples:
            found.append(evaluate.pixels(examples["image"]))
        if "text" in examples:
            size = len(config.data.vocabulary)
            found.append(text_settings.log_counts(examples["text"], size))
        if len(found) > 1:  # equal parts: otherwise the pixels, which are more, would decide alone
            found = [unit_rows(part) for part in found]
        return np.concatenate(found, axis=1)

    def input_bound_hint(self, config, source):  # noqa: D102
        return (
            "Give it more processor cores, or store the images not much larger than "
            "config.data.decode_size."
        )

    def example_batch(self, config: ConfigDict) -> byol.Batch:  # noqa: D102
        size = config.data.decode_size
        examples = {
            "image": np.zeros((2, size, size, 3), np.uint8),
            "text": np.zeros((2, config.data.length), np.int32),
        }
        return byol.Batch(examples, None, np.arange(2, dtype=np.int32))

    def policy(self, config: ConfigDict) -> augment.Policy:  # noqa: D102
        return augment.Policy(
            view1=image_augment.View(**config.views.view1),
            view2=text_augment.View(**config.views.view2),
            crop=crop(config),
            size=config.data.image_size,
            mean=tuple(config.views.mean),
            std=tuple(config.views.std),
            vocabulary=tuple(config.data.vocabulary),
        )

    def as_inputs(self, policy: augment.Policy, views: Tree) -> Tree:  # noqa: D102
        if "text" in views:
            return views
        return {"image": image_augment.to_uint8(views["image"], policy.mean, policy.std)}

    def pictures(
        self, policy: augment.Policy, examples: dict[str, np.ndarray], views: Sequence[Tree]
    ) -> dict[str, np.ndarray]:
        """Images and the words of texts, and the view of each."""
        seen = np.asarray(views[0]["image"]) * np.array(policy.std) + np.array(policy.mean)
        tokens = {"text": examples["text"], "view 2": views[1]["text"]}
        texts = {
            name: [text_settings.words(policy.vocabulary, row) for row in np.asarray(rows)]
            for name, rows in tokens.items()
        }
        images = {"image": np.asarray(examples["image"]) / 255, "view 1": seen}
        return drawing.of_one_size(images | drawing.texts(texts))

    def encoder_record(self, config: ConfigDict) -> dict[str, Any]:  # noqa: D102
        chosen = config.data
        return {
            "kind": self.name,
            "image_size": chosen.image_size,
            "mean": list(config.views.mean),
            "std": list(config.views.std),
            "length": chosen.length,
            "vocabulary": list(chosen.vocabulary or ()),
            "embedding_size": config.embedding_size,
            TEXT_ENCODER: config.text_encoder.to_dict(),
        }

    def config_of_record(self, record: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        size = record["image_size"]
        return {
            "data": {
                "image_size": size,
                "decode_size": size,
                "length": record["length"],
                "vocabulary": tuple(record["vocabulary"]),
            },
            "views": {"mean": record["mean"], "std": record["std"]},
            "embedding_size": record["embedding_size"],
            TEXT_ENCODER: record[TEXT_ENCODER],
        }

    def check_inputs(self, record, module, name, given):
        """Returns uint8 images, int32 tokens or both, by name."""
        del module
        if not isinstance(given, Mapping) or not given or not given.keys() <= {*PARTS}:
            raise DataError(f'{name} takes {{"image": images, "text": texts}}, or one of them.')
        found = {}
        if "image" in given:
            found["image"] = _checked_images(name, given["image"])
        if "text" in given:
            found["text"] = text_settings.checked(record, name, given["text"])
        if len({len(array) for array in found.values()}) > 1:
            raise DataError(f"{name} was given different numbers of images and texts.")
        return found

    def preprocess(self, record, examples):  # noqa: D102
        return augment.preprocess(examples, record["image_size"], record["mean"], record["std"])

    def blank(self, record, n):  # noqa: D102
        size = record["image_size"]
        return {
            "image": jax.ShapeDtypeStruct((n, size, size, 3), np.uint8),
            "text": jax.ShapeDtypeStruct((n, record["length"]), np.int32),
        }


def _checked_images(name: str, given: Any) -> np.ndarray:
    try:
        images = np.asarray(given)
    except ValueError:
        raise DataError(f"{name} was given images of several sizes: resize them to one.") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise DataError(
            f"{name} takes uint8 images of one size, (n, height, width, 3), not {images.dtype} "
            f"{images.shape}."
        )
    return images
