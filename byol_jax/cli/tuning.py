"""Fine-tuning as a protocol of `evaluate` and `transfer`: a sweep for each encoder."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from byol_jax import data
from byol_jax.cli.encoders import Row
from byol_jax.runs import processes
from byol_jax.train.finetune import sweep as sweep_lib
from byol_jax.train.finetune.choices import Recipe
from byol_jax.train.finetune.sweep import Sweep
from byol_jax.train.signals import stop_requests


def sweeps(
    rows: dict[str, Row],
    recipe: Recipe,
    train: data.Source,
    test: data.Source,
    crop: data.Crop,
    left_out: Callable[[str], Any] | None,
) -> dict[str, Sweep]:
    """What is fine-tuned, by encoder.

    Args:
      rows: encoders; those without a network, such as raw pixels, are left out.
      recipe: what is tried.
      train: images with labels, some of which are held out to choose on.
      test: images of the same classes.
      crop: of training views.
      left_out: as of `Sweep`.

    Raises:
      UserError: as of `sweep.of_recipe`.
    """
    fitted, held_out = data.hold_out(train)
    return {
        name: sweep_lib.of_recipe(
            recipe,
            fitted,
            train,
            encoder=row.encoder,
            held_out=held_out,
            test=test,
            crop=crop,
            left_out=left_out,
        )
        for name, row in rows.items()
        if row.encoder is not None
    }


def run(
    found: dict[str, Sweep], folder: Path, log: Callable[[str], None]
) -> dict[str, dict[str, Any]] | None:
    """The reports of `sweeps`; None if a signal stopped them, after which the same call resumes.

    Args:
      found: by encoder.
      folder: gets a folder for each encoder, with its state and the best classifier.
      log: called with lines of text.

    Raises:
      UserError: as of `sweep.run`.
    """
    reports = {}
    with processes.translate_errors("make --finetune_batch_size smaller"), stop_requests() as stop:
        for name, sweep in found.items():
            log(f"finetune: {name}: choices: {len(sweep.choices)}, images in all: {sweep.images}")
            report = sweep_lib.run(sweep, folder / file_name(name), stop, log)
            if report is None:
                return None
            reports[name] = report
    return reports


def file_name(text: str) -> str:
    """A text as the name of a file, whose length is limited."""
    return re.sub(r"[^\w.]+", "-", text)[-100:]
