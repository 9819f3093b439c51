r"""Converts a pre-training checkpoint of the authors' code to a run of ours.

byol-jax import-reference --checkpoint=FILE.pkl --output=DIR \
    [--epochs=N] [--batch_size=N] [--image_size=N]

DIR can be evaluated, exported, trained further (--config.init.state=DIR) and opened by
`byol_jax.load`. The file is a pickle, but nothing in it is executed: what a checkpoint does not
need is refused. It does not contain how it was trained; the defaults are the paper's. The weights
published by the authors are licensed CC BY-NC 4.0.
"""

from pathlib import Path

from absl import flags

from byol_jax.cli import app

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A pretrain.pkl of the authors' code.")
OUTPUT = flags.DEFINE_string("output", None, "The folder to make.")
EPOCHS = flags.DEFINE_integer("epochs", 1000, "Length of its complete training, on ImageNet.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4096, "Batch size of its training.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Height and width of its views.")
flags.mark_flags_as_required(["checkpoint", "output"])


def main() -> None:
    """Imports a checkpoint."""
    from byol_jax.export.convert import reference_checkpoint

    output = Path(OUTPUT.value)
    reference_checkpoint.check_output(output)
    trained = reference_checkpoint.read(
        Path(CHECKPOINT.value),
        epochs=EPOCHS.value,
        batch_size=BATCH_SIZE.value,
        image_size=IMAGE_SIZE.value,
    )
    reference_checkpoint.write(trained, output)
    encoder = trained.run.config.encoder
    print(
        f"{output}: a run of {encoder.name} (width {encoder.width_multiplier:g}) at step "
        f"{int(trained.state.step)} of {trained.run.total_steps}"
    )
    print(reference_checkpoint.LICENSE)


if __name__ == "__main__":
    app.run(main)
