"""`byol-jax COMMAND ...`, or `python -m byol_jax.cli COMMAND ...`.

Only the module of the chosen command is imported: several define the same flags.
"""

import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, if this is one

COMMANDS = {  # module and summary
    "pretrain": ("byol_jax.cli.pretrain", "train an encoder without labels"),
    "evaluate": ("byol_jax.cli.evaluate", "measure an encoder on labelled images"),
    "report": ("byol_jax.cli.report", "write a page about a run: health, accuracy, map of images"),
    "compare": (
        "byol_jax.cli.compare",
        "write a page with runs side by side: settings, results, curves",
    ),
    "transfer": ("byol_jax.cli.transfer", "measure an encoder on the paper's transfer data sets"),
    "finetune": ("byol_jax.cli.finetune", "train a classifier that starts from an encoder"),
    "recommend": ("byol_jax.cli.recommend", "recommend items to users, or measure that"),
    "search": ("byol_jax.cli.search", "find the images most similar to given ones"),
    "dedupe": ("byol_jax.cli.dedupe", "find images that are nearly the same"),
    "label": ("byol_jax.cli.label", "label images from a few labels, suggest which to label"),
    "export": ("byol_jax.cli.export", "write an encoder or its features for use elsewhere"),
    "import-reference": (
        "byol_jax.cli.import_reference",
        "convert one of the authors' checkpoints",
    ),
    "check-data": ("byol_jax.cli.check_data", "find images that cannot be decoded"),
    "data-service": ("byol_jax.cli.data_service", "decode images for training on other machines"),
    "launch-local": ("byol_jax.cli.launch_local", "pretrain in several processes on this machine"),
    "bench": ("experiments.bench", "measure speed and memory (in a checkout)"),
}


def main() -> None:
    """Runs the command that the command line names."""
    name, *arguments = sys.argv[1:] or ["help"]
    if name in ("help", "--help", "-h"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `byol-jax help | head -1` ends quietly
        print(usage())
        return
    if name not in COMMANDS:
        _exit(f"unknown command {name!r}; `byol-jax help` lists the commands.")
    module, _ = COMMANDS[name]
    if name == "bench":
        if not (ROOT / "experiments" / "bench").is_dir():
            _exit("`bench` is not installed: clone the repository and run it there.")
        sys.path.insert(0, str(ROOT))
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}\n" for name, (_, summary) in COMMANDS.items()]
    return (
        f"usage: byol-jax COMMAND [ARGUMENTS]\n\n{''.join(lines)}\n"
        "byol-jax COMMAND --help lists its flags. A first run, in minutes on a CPU:\n"
        "  byol-jax pretrain FOLDER_OF_IMAGES"
    )


def _exit(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
