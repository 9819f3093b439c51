"""Writes the encoder of a pre-training run for use elsewhere; `byol_jax.load` opens it.

python -m experiments.export --checkpoint=DIR --output=OUT [--step=N]
"""

from pathlib import Path

from absl import flags

from experiments import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a pre-training run.")
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
flags.mark_flags_as_required(["checkpoint", "output"])


def main() -> None:
    """Exports as the flags say."""
    from byol_jax import runs
    from byol_jax.export import encoder

    trained = runs.restore(Path(CHECKPOINT.value), STEP.value)
    encoder.save(trained, Path(OUTPUT.value))
    print(
        f"{OUTPUT.value}: model.safetensors and config.json of {trained.run.config.encoder.name}, "
        f"step {int(trained.state.step)}"
    )


if __name__ == "__main__":
    cli.run(main)
