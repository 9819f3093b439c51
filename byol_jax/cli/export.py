r"""Writes a trained encoder, or the features of a data set that it computes, for use elsewhere.

byol-jax export --checkpoint=DIR --output=OUT [--step=N] [--format=NAME] [--import=MODULE]
byol-jax export --what=features --checkpoint=DIR --output=OUT [--step=N] \
    [--data=SOURCE] [--data_dir=DIR] [--split=NAME] [--on_decode_error=error|skip] \
    [--import=MODULE]

docs/export.md describes the formats and how to load them.
"""

import importlib
from pathlib import Path

from absl import flags

from byol_jax.cli import app, image_features, import_flag
from byol_jax.errors import ConfigError

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
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; the newest by default.")
WHAT = flags.DEFINE_string("what", "encoder", "encoder, or features of a data set.")
FORMAT = flags.DEFINE_string(
    "format", None, f"Format of the encoder: {', '.join(FORMATS)}; byol_jax by default."
)
DATA = flags.DEFINE_string(
    "data",
    None,
    "For features: folder:PATH, list:FILE, tfds:NAME and others; the training's by default.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "For features: where TFDS keeps its data; the training's by default."
)
SPLIT = flags.DEFINE_string("split", None, "For features: the split; the training's by default.")
ON_DECODE_ERROR = flags.DEFINE_enum(
    "on_decode_error",
    None,
    ["error", "skip"],
    "For features: stop at an image that cannot be decoded (default), or leave it out.",
)
IMPORT = import_flag.define()
flags.mark_flags_as_required(["checkpoint", "output"])


def main() -> None:
    """Exports an encoder or features."""
    file_format = FORMAT.value or "byol_jax"
    if file_format not in FORMATS:
        raise ConfigError(f"--format={file_format} is not one of {', '.join(FORMATS)}.")
    if WHAT.value not in ("encoder", "features"):
        raise ConfigError(f"--what={WHAT.value} is neither encoder nor features.")
    if WHAT.value == "features" and FORMAT.value is not None:
        raise ConfigError(
            "--format is for encoders, and features are always written as features.npz and "
            "features.parquet: leave --format or --what=features out."
        )
    for_features = (DATA, DATA_DIR, SPLIT, ON_DECODE_ERROR)
    given = [flag.name for flag in for_features if flag.value is not None]
    if WHAT.value == "encoder" and given:
        raise ConfigError(
            f"--{given[0]} is for features, and an encoder is exported without data: add "
            f"--what=features, or leave --{given[0]} out."
        )

    import byol_jax

    import_flag.apply(IMPORT)
    encoder, output = byol_jax.load(CHECKPOINT.value, STEP.value), Path(OUTPUT.value)
    if WHAT.value == "features":
        from byol_jax.export import features
        from byol_jax.runs import kinds

        kinds.require_images(encoder.kind.name, "--what=features")
        given = DATA.value, SPLIT.value, DATA_DIR.value
        features.save(
            encoder,
            output,
            image_features.open_data(encoder.config, CHECKPOINT.value, *given),
            crop_fraction=encoder.crop_fraction,
            on_decode_error=_print_left_out if ON_DECODE_ERROR.value == "skip" else None,
        )
    else:
        importlib.import_module(FORMATS[file_format]).save(encoder, output)
    files = ", ".join(sorted(path.name for path in output.iterdir()))
    print(
        f"{output}: {files}: {WHAT.value} of {encoder.config['encoder']['name']}, step "
        f"{encoder.config['training']['step']}"
    )


def _print_left_out(name: str) -> None:
    print(f"left out: {name}")


if __name__ == "__main__":
    app.run(main)
