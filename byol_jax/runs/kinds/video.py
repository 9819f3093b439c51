"""Video: clips of files, and views with the same crop and colours for all frames (rho-BYOL)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, models
from byol_jax.augment import image as image_augment
from byol_jax.augment import video as augment
from byol_jax.byol import Tree
from byol_jax.data.video import VideoSource, open_video
from byol_jax.errors import ConfigError, DataError
from byol_jax.runs.kinds import image_settings
from byol_jax.runs.kinds.images import crop
from byol_jax.runs.kinds.indexed_kind import IndexedKind
from byol_jax.runs.limits import MIN_POSITIVE, limit

PREFIX = "folder:"
PICTURED = 2  # examples in a picture, with a row for each clip and view
FRAMES = 8  # of a row


class Video(IndexedKind):
    """uint8 (frames, height, width, 3)."""

    name = "video"
    unit = "videos"
    input_meaning = "0 to 255, not normalised: mean and std are applied inside"
    raw_name = "raw"
    source_type = VideoSource
    choices = image_settings.CHOICES
    at_least = (
        image_settings.AT_LEAST
        | limit(2, "data.frames data.clips")
        | limit(1, "data.decode_size")
        | limit(MIN_POSITIVE, "data.seconds")
    )
    at_most = (
        image_settings.AT_MOST
        | limit(1000, "data.frames")
        | limit(16, "data.clips")  # each takes time to compile
        | limit(2**16, "data.decode_size")
        | limit(3600, "data.seconds")
    )

    def add_settings(self, config):  # noqa: D102 (see Kind, here and below)
        config.data.frames = 8  # of a clip
        config.data.seconds = 2.0  # that a clip lasts
        # Clips of a video in each step: rho of the paper. Those from the third on are seen by the
        # online network alone, and predict the target's projections of the first two (without a
        # target network, each of them and each of the first two predict each other).
        config.data.clips = 2
        # Frames are decoded to this height and width: the shorter side is resized, and the middle
        # of the longer one is kept. Crops are taken from that.
        config.data.decode_size = 256
        config.data.image_size = 224
        image_settings.add_views(config)

    def resolve(self, config):  # noqa: D102
        image_settings.check_moments(config, 3)

    def check(self, config, encoder):  # noqa: D102
        del encoder
        image_settings.check_decode_size(config)
        image_settings.check_views(config, config.data.image_size, "data.image_size")

    def fit_to(self, config, source):  # noqa: D102
        self.check_source(config, source)
        if source.clips != config.data.clips:
            raise DataError(
                f"{source.name} has {source.clips} clips of a video in training, and "
                f"config.data.clips={config.data.clips}: open it with as many."
            )

    def check_source(self, config, source):
        """Raises DataError unless the clips of a source are such as the run's."""
        super().check_source(config, source)
        has = (source.frames, source.seconds, source.size)
        wanted = (config.data.frames, config.data.seconds, config.data.decode_size)
        if has != wanted:
            raise DataError(
                f"{source.name} was opened with (frames, seconds, size) = {has}, and config.data's "
                f"frames, seconds and decode_size are {wanted}: open it with these."
            )

    def check_encoder(self, config, encoder):  # noqa: D102
        if not _takes_clips(encoder):
            models.check_image_size(encoder, config.data.image_size, config.data.image_size)

    def adapt(self, encoder: nn.Module) -> nn.Module:  # noqa: D102
        return encoder if _takes_clips(encoder) else models.FrameMean(encoder)

    def num_local_views(self, config):  # noqa: D102
        return config.data.clips - 2

    def view_shapes(self, config):  # noqa: D102
        size = config.data.image_size
        return [(config.data.frames, size, size, 3)]

    def describe(self, config):  # noqa: D102
        chosen = config.data
        return f"{chosen.frames} frames in {chosen.seconds:g} s, {chosen.image_size} pixels"

    def open_split(self, config: ConfigDict, split: str) -> VideoSource:  # noqa: D102
        spec, chosen = config.data.source, config.data
        if not spec.startswith(PREFIX):
            raise ConfigError(
                f"config.data.source={spec} must be folder:PATH: a preset of video reads files."
            )
        path = spec.removeprefix(PREFIX)
        shape = chosen.frames, chosen.seconds, chosen.decode_size
        return open_video(path, split, *shape, chosen.clips)

    def input_bound_hint(self, config, source):  # noqa: D102
        return (
            "Give it more processor cores, or store the videos in files not much larger than "
            "config.data.decode_size and with key frames more often."
        )

    def raw(self, config: ConfigDict, examples: dict[str, np.ndarray]) -> np.ndarray:
        """The mean frame, and the mean absolute change between frames, shrunk to 32 pixels."""
        from byol_jax import evaluate  # late: `byol_jax.load` needs none of it

        clips = examples["clip1"].astype(np.float32)
        change = np.abs(np.diff(clips, axis=1))
        parts = [evaluate.pixels(frames.mean(axis=1)) for frames in (clips, change)]
        return np.concatenate(parts, axis=1)

    def example_batch(self, config: ConfigDict) -> byol.Batch:  # noqa: D102
        size = config.data.decode_size
        clip = np.zeros((2, config.data.frames, size, size, 3), np.uint8)
        clips = {f"clip{i}": clip for i in range(1, config.data.clips + 1)}
        return byol.Batch(clips, None, np.arange(2, dtype=np.int32))

    def policy(self, config: ConfigDict) -> augment.Policy:  # noqa: D102
        of_frames = image_augment.Policy(
            view1=image_augment.View(**config.views.view1),
            view2=image_augment.View(**config.views.view2),
            mean=tuple(config.views.mean),
            std=tuple(config.views.std),
        )
        return augment.Policy(of_frames, crop(config), config.data.image_size)

    def as_inputs(self, policy: augment.Policy, views: jax.Array) -> Tree:  # noqa: D102
        return {"clip1": image_augment.to_uint8(views, policy.image.mean, policy.image.std)}

    def pictures(
        self, policy: augment.Policy, examples: dict[str, np.ndarray], views: Sequence[Tree]
    ) -> dict[str, np.ndarray]:
        """Frames from left to right: of the clips of a few examples, and of their views."""
        mean, std = np.array(policy.image.mean), np.array(policy.image.std)
        rows = {}
        for example in range(min(PICTURED, len(views[0]))):
            for i, view in enumerate(views, start=1):
                clip = np.asarray(examples[f"clip{i}"][example, :FRAMES])
                rows[f"{example + 1}: clip {i}"] = clip / 255
                rows[f"{example + 1}: view {i}"] = np.asarray(view[example, :FRAMES]) * std + mean
        return rows

    def encoder_record(self, config: ConfigDict) -> dict[str, Any]:  # noqa: D102
        record = {key: config.data[key] for key in ("frames", "seconds", "image_size")}
        moments = {key: list(config.views[key]) for key in ("mean", "std")}
        return {"kind": self.name} | record | moments

    def config_of_record(self, record: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        data = {key: record[key] for key in ("frames", "seconds", "image_size")}
        return {
            "data": data | {"decode_size": record["image_size"]},
            "views": {"mean": record["mean"], "std": record["std"]},
        }

    def check_same_inputs(self, given, config, record):  # noqa: D102
        for key in ("frames", "seconds"):
            if record[key] != config.data[key]:
                raise ConfigError(
                    f"{given} takes clips with {key}={record[key]}, and the run's have "
                    f"{config.data[key]}: name an encoder of the same."
                )

    def check_inputs(self, record, module, name, given):
        """Returns uint8 (n, frames, height, width, 3), by the name "clip1"."""
        try:
            clips = np.asarray(given["clip1"] if isinstance(given, Mapping) else given)
        except (KeyError, ValueError):
            raise DataError(
                f"{name} takes clips of one shape, (n, frames, height, width, 3)."
            ) from None
        if (
            clips.dtype != np.uint8
            or clips.ndim != 5
            or clips.shape[-1] != 3
            or 0 in clips.shape[1:]
        ):
            raise DataError(
                f"{name} takes uint8 clips (n, frames, height, width, 3), such as of "
                f"{record['frames']} frames in {record['seconds']:g} s, not {clips.dtype} "
                f"{clips.shape}."
            )
        return {"clip1": clips}

    def preprocess(self, record, examples):
        """The central square of clips, with or without their name, resized and normalised."""
        return augment.preprocess(examples, record["image_size"], record["mean"], record["std"])

    def blank(self, record, n):  # noqa: D102
        size = record["image_size"]
        return jax.ShapeDtypeStruct((n, record["frames"], size, size, 3), np.uint8)


def _takes_clips(encoder: nn.Module) -> bool:
    return getattr(encoder, "of_clips", False)
