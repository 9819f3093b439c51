"""Writes a trained encoder, or the features it makes of a data set, for use elsewhere.

byol-jax export --checkpoint=DIR --output=OUT [--step=N] [--format=NAME]
byol-jax export --what=features --checkpoint=DIR --output=OUT [--step=N] \
    [--data=SOURCE] [--data_dir=DIR] [--split=NAME]

docs/export.md says what each format is for and how to load it.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from byol_jax.cli import app
from byol_jax.errors import UserError

if TYPE_CHECKING:
    from byol_jax.runs.encoder import Encoder

FORMATS = {  # the module whose `save` writes it
    "byol_jax": "byol_jax.runs.encoder",
    "torchvision": "byol_jax.export.torchvision",
    "timm": "byol_jax.export.timm",
    "stablehlo": "byol_jax.export.stablehlo",
    "savedmodel": "byol_jax.export.savedmodel",
    "onnx": "byol_jax.export.onnx",
    "orbax": "byol_jax.export.orbax",
}

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The --workdir of a pre-training run, or an exported encoder."
)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")
STEP = flags.DEFINE_integer("step", None, "Of a run, which checkpoint; the newest by default.")
WHAT = flags.DEFINE_string("what", "encoder", "encoder, or features of a data set.")
FORMAT = flags.DEFINE_string(
    "format", None, f"Of the encoder: {', '.join(FORMATS)}; byol_jax by default."
)
DATA = flags.DEFINE_string(
    "data",
    None,
    "Of features: tfds:NAME, folder:, npz:PATH, embedded; or the training's.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Of features: where TFDS keeps its data; the training's by default."
)
SPLIT = flags.DEFINE_string("split", None, "Of features: which; the training's by default.")
flags.mark_flags_as_required(["checkpoint", "output"])


def main() -> None:
    """Exports as the flags say."""
    kind = FORMAT.value or "byol_jax"
    if kind not in FORMATS:
        raise UserError(f"--format={kind} is not one of {', '.join(FORMATS)}.")
    if WHAT.value not in ("encoder", "features"):
        raise UserError(f"--what={WHAT.value} is neither encoder nor features.")
    if WHAT.value == "features" and FORMAT.value is not None:
        raise UserError(
            "--format is for encoders, and features are always written as features.npz and "
            "features.parquet: leave --format or --what=features out."
        )
    of_features = [flag.name for flag in (DATA, DATA_DIR, SPLIT) if flag.value is not None]
    if WHAT.value == "encoder" and of_features:
        raise UserError(
            f"--{of_features[0]} is for features, and an encoder is exported without data: add "
            f"--what=features, or leave --{of_features[0]} out."
        )

    import byol_jax

    encoder, output = byol_jax.load(CHECKPOINT.value, STEP.value), Path(OUTPUT.value)
    if WHAT.value == "features":
        save_features(encoder, output)
    else:
        importlib.import_module(FORMATS[kind]).save(encoder, output)
    files = ", ".join(sorted(path.name for path in output.iterdir()))
    print(
        f"{output}: {files}: {WHAT.value} of {encoder.config['encoder']['name']}, step "
        f"{encoder.config['training']['step']}"
    )


def save_features(encoder: "Encoder", output: Path) -> None:
    """Embeds the data that the flags name, or else that the encoder was trained on."""
    from byol_jax import data
    from byol_jax.export import features
    from byol_jax.runs import config as config_lib

    trained_on = (encoder.config["training"].get("config") or {}).get("data", {})
    spec = DATA.value or trained_on.get("source")
    # The split means nothing to another dataset.
    defaults = trained_on if spec == trained_on.get("source") else {}
    if spec in (None, config_lib.UNKNOWN_SOURCE):
        raise UserError(
            f"{CHECKPOINT.value} does not say what it was trained on: name images with --data."
        )
    source = data.open_source(
        spec,
        SPLIT.value or defaults.get("train_split") or "train",
        data_dir=DATA_DIR.value or trained_on.get("dir") or None,
        channels=encoder.config["channels"],
    )
    features.save(encoder, output, source, crop_fraction=encoder.crop_fraction)


if __name__ == "__main__":
    app.run(main)
