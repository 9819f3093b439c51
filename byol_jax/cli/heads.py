"""The heads of the paper's linear evaluation, trained on frozen encoders, and their checkpoints.

DIR/SIZE-DIGEST/checkpoints has the heads of all encoders of one image size, and their features of a
few images, by which a later start knows whether the encoders and the images are still the same.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from byol_jax import data
from byol_jax.cli import encoders
from byol_jax.cli.encoders import Row
from byol_jax.evaluate import linear
from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy
from byol_jax.train.signals import StopRequest
from byol_jax.train.timer import SaveTimer

MINUTES = 5.0  # between checkpoints
COMPARED = 16  # images whose features are compared
TOLERANCE = 1e-2  # of them, relative to the largest: devices and their libraries round differently


class State(NamedTuple):
    """What a checkpoint has, by encoder."""

    heads: dict[str, linear.Heads]
    features: dict[str, np.ndarray]  # float32 (COMPARED, d): of the first batch


def train(
    rows: dict[str, Row],
    config: ConfigDict,
    source: data.Source,
    epochs: int,
    left_out: dict[str, None],
    directory: Path,
    stop: StopRequest,
    log: Callable[[str], None],
) -> dict[str, linear.Heads] | None:
    """The heads of each encoder, trained on a source; None if they were stopped, and saved.

    Encoders of one image size share the images. Crops and flips are those of the run. Raw pixels
    are left out: shrinking so many images would take longer than an encoder.

    Args:
      rows: encoders.
      config: of the run.
      source: images with labels.
      epochs: passes over them.
      left_out: gets images that cannot be decoded, if the config skips them.
      directory: where the checkpoints are, those of an earlier start too.
      stop: on whose request it saves and returns.
      log: called with lines of text.

    Raises:
      UserError: an image cannot be decoded, or a checkpoint cannot be read or written.
    """
    rows = {name: row for name, row in rows.items() if name != "pixels"}
    batch_size = min(linear.BATCH_SIZE, source.num_examples)
    steps = epochs * data.steps_per_epoch(source, batch_size)
    heads: dict[str, linear.Heads] = {}
    for size, mine in encoders.by_size(rows):
        settings = [list(mine), source.name, source.num_examples, epochs, config.seed]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        plan = (config, source, size, batch_size)
        (first,) = encoders.train_crops(*plan, 1, 1, left_out)
        features = {name: row.embed(first.examples[:COMPARED, 0]) for name, row in mine.items()}
        state = State(
            {name: linear.init(x.shape[1], source.num_classes) for name, x in features.items()},
            features,
        )
        start, state = _restore(directory / f"{size}-{digest}", state, log)
        with Checkpoints(directory / f"{size}-{digest}", RetentionPolicy(1)) as checkpoints:
            timer = SaveTimer(MINUTES)
            with encoders.progress(f"linear, {epochs} epochs", steps * batch_size) as progress:
                progress.update(start * batch_size)
                batches = encoders.train_crops(*plan, steps, 1, left_out, start)
                for step, batch in enumerate(batches, start + 1):
                    for name, row in mine.items():
                        found = row.embed(batch.examples[:, 0])
                        state.heads[name] = linear.update(
                            state.heads[name], found, batch.labels, total_steps=steps
                        )
                    progress.update(batch_size)
                    stops = stop.requested  # once: a signal may come at any moment
                    if step == steps or stops or timer.is_due():
                        checkpoints.save(step, jax.device_get(state))
                        timer.restart()
                    if stops and step < steps:
                        log(f"Stopped and saved at step {step}; the same command resumes.")
                        return None
        heads |= state.heads
    return {name: heads[name] for name in rows}


def _restore(folder: Path, state: State, log: Callable[[str], None]) -> tuple[int, State]:
    """The newest checkpoint if it is of this work, and its step; else it is removed."""
    found = Checkpoints(folder).restore_newest(jax.eval_shape(lambda: state), log)
    if found is None:
        return 0, state
    for name, now in state.features.items():
        difference = np.abs(np.asarray(found.state.features[name]) - now)
        if difference.max() > TOLERANCE * np.abs(now).max():
            log(f"linear: starts from the beginning, as {name} or the images have changed.")
            epath.Path(folder).rmtree()
            return 0, state
    log(f"linear: resumed at step {found.step}.")
    return found.step, found.state
