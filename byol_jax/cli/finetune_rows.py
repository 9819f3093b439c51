"""Fine-tuning of several encoders, as a protocol of `evaluate` and `transfer`."""

from collections.abc import Callable
from typing import Any

from byol_jax import data
from byol_jax.cli.encoders import Row
from byol_jax.errors import UserError
from byol_jax.runs import manifest, paths, processes
from byol_jax.train.finetune import sweep as sweep_lib
from byol_jax.train.finetune.choices import Recipe
from byol_jax.train.finetune.sweep import Sweep
from byol_jax.train.signals import StopRequest

Reports = dict[str, dict[str, Any]]  # by encoder


def sweeps(
    rows: dict[str, Row],
    recipe: Recipe,
    parts: list[data.Source],
    train: data.Source,
    test: data.Source,
    crop: data.Crop,
    left_out: Callable[[str], Any] | None,
) -> dict[str, Sweep]:
    """What is fine-tuned, by encoder.

    Args:
      rows: encoders; those without a network, such as raw pixels, are left out.
      recipe: what is tried.
      parts: of `data.hold_out(train)`.
      train: images with labels.
      test: images of the same classes.
      crop: of training views.
      left_out: as of `Sweep`.

    Raises:
      UserError: as of `sweep.of_recipe`.
    """
    fitted, held_out = parts
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
    found: dict[str, Sweep], folder: paths.AnyPath, stop: StopRequest, log: Callable[[str], None]
) -> tuple[Reports, dict[str, UserError]] | None:
    """The reports of `sweeps`, and the errors of those that fail.

    Args:
      found: by encoder.
      folder: gets a folder for each encoder, named after all that its results depend on but for
        the choices, with its state and the best classifier.
      stop: on whose request it saves and returns None; the same call resumes.
      log: called with lines of text.
    """
    reports, failed = {}, {}
    for name, sweep in found.items():
        log(f"finetune: {name}: choices: {len(sweep.choices)}, images in all: {sweep.images}")
        of_row = f"{paths.file_name(name)}-{manifest.json_digest(sweep.settings)[:8]}"
        try:
            with processes.translate_errors("make --finetune_batch_size smaller"):
                report = sweep_lib.run(sweep, folder / of_row, stop, log)
        except UserError as error:
            failed[name] = error
            continue
        if report is None:
            return None
        reports[name] = report | {"folder": str(folder / of_row)}
    return reports, failed
