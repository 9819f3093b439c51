"""The paper's linear evaluation of several frozen encoders, with checkpoints to resume from."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from byol_jax import data
from byol_jax.cli import encoders
from byol_jax.cli.encoders import Row
from byol_jax.errors import CheckpointError
from byol_jax.evaluate import linear
from byol_jax.runs import manifest, paths
from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy
from byol_jax.runs.kinds import images
from byol_jax.train.signals import StopRequest
from byol_jax.train.timer import SaveTimer

MINUTES = 5.0  # between checkpoints


class State(NamedTuple):
    """What a checkpoint has."""

    heads: dict[str, linear.Heads]  # by the number of the encoder


class Trained(NamedTuple):
    """Heads by encoder, and the folders that are of no use once they are evaluated."""

    heads: dict[str, linear.Heads]
    folders: list[paths.AnyPath]


def train(
    rows: dict[str, Row],
    config: ConfigDict,
    source: data.Source,
    epochs: int,
    left_out: dict[str, None],
    directory: paths.AnyPath,
    stop: StopRequest,
    log: Callable[[str], None],
) -> Trained | None:
    """Trains the heads of each encoder; None if a signal stopped it, and the same call resumes.

    Encoders of one image size share the images. Crops and flips are those of the run. Raw pixels
    are left out: shrinking so many images would take longer than an encoder.

    Args:
      rows: encoders.
      config: of the run.
      source: images with labels.
      epochs: passes over them.
      left_out: gets images that cannot be decoded, if the config skips them.
      directory: gets a folder for each image size, named after all that the heads depend on.
      stop: on whose request it saves and returns.
      log: called with lines of text.

    Raises:
      UserError: an image cannot be decoded, a checkpoint cannot be written, or another process
        trains the same heads.
    """
    rows = {name: row for name, row in rows.items() if row.encoder is not None}
    batch_size = min(linear.BATCH_SIZE, source.num_examples)
    steps = epochs * data.steps_per_epoch(source, batch_size)
    trained = Trained({}, [])
    for size, mine in encoders.by_size(rows):
        folder = directory / f"{size}-{_digest(mine, config, source, epochs)}"
        with run_lib.lock_workdir(folder):
            # By number, as a checkpoint's names must not contain a path.
            blank = np.zeros((1, size, size, config.data.channels), np.uint8)
            heads = {
                str(i): linear.init(row.embed(blank).shape[1], source.num_classes)
                for i, row in enumerate(mine.values())
            }
            start, state = _restore(folder, State(heads), left_out, log)
            crops = encoders.train_crops(
                config, source, size, batch_size, steps, 1, left_out, start
            )
            timer = SaveTimer(MINUTES)
            with (
                Checkpoints(folder / "checkpoints", RetentionPolicy(1)) as checkpoints,
                encoders.progress(f"linear, {epochs} epochs", steps * batch_size) as progress,
            ):
                progress.update(start * batch_size)
                for step, batch in enumerate(crops, start + 1):
                    for i, row in enumerate(mine.values()):
                        features = row.embed(batch.examples[:, 0])
                        state.heads[str(i)] = linear.update(
                            state.heads[str(i)], features, batch.labels, total_steps=steps
                        )
                    progress.update(batch_size)
                    stops = stop.requested  # once: a signal may come at any moment
                    if step == steps or stops or timer.is_due():
                        text = json.dumps(list(left_out))
                        paths.write_atomically(folder / "left_out.json", text.encode())
                        checkpoints.save(step, jax.device_get(state))
                        timer.restart()
                    if stops:
                        log(f"Stopped and saved at step {step}; the same command resumes.")
                        return None
        trained.folders.append(folder)
        trained.heads.update(zip(mine, state.heads.values(), strict=True))
    return Trained({name: trained.heads[name] for name in rows}, trained.folders)


def classify(
    heads: dict[str, linear.Heads],
    held_out: tuple[dict[str, np.ndarray], np.ndarray],
    test: tuple[dict[str, np.ndarray], np.ndarray],
    source: data.Source,
) -> dict[str, dict[str, Any]]:
    """The results of `linear.evaluate` by encoder.

    Args:
      heads: by encoder.
      held_out: features by encoder, and labels, of the images to choose the learning rate on.
      test: likewise, of the test images.
      source: that the heads were trained on.
    """
    return {
        name: linear.evaluate(
            heads[name],
            held_out[0][name],
            held_out[1],
            np.asarray(test[0][name], np.float32),
            test[1],
            num_classes=source.num_classes,
        )
        for name in heads
    }


def _digest(rows: dict[str, Row], config: ConfigDict, source: data.Source, epochs: int) -> str:
    """What tells these heads from others, as the name of a folder."""
    settings = {
        "encoders": {
            name: [row.encoder.config, manifest.digest(row.encoder.variables)]
            for name, row in rows.items()
        },
        "train": [source.name, source.num_examples, source.fingerprint(), source.class_names],
        "crop": images.crop(config)._asdict(),
        "epochs": epochs,
        "seed": config.seed,
    }
    return manifest.json_digest(settings)[:16]


def _restore(
    folder: paths.AnyPath, state: State, left_out: dict[str, None], log: Callable[[str], None]
) -> tuple[int, State]:
    """The step and the state of the newest checkpoint; what is damaged is removed."""
    path = folder / "left_out.json"
    try:
        found = Checkpoints(folder / "checkpoints").restore_newest(
            jax.eval_shape(lambda: state), log
        )
        if found is None:
            return 0, state
        left_out.update(dict.fromkeys(json.loads(path.read_text())))
    except (CheckpointError, OSError, ValueError, TypeError) as error:
        log(f"linear: starts from the beginning, as its checkpoint cannot be read ({error}).")
        epath.Path(folder / "checkpoints").rmtree()
        return 0, state
    log(f"linear: resumed at step {found.step}.")
    return found.step, found.state
