"""Other implementations, with which byol_jax is compared. Training needs none of them.

`available` imports those that are installed.
"""

import importlib
from collections.abc import Sequence

from byol_jax.errors import UserError

# For each peer its module and a description.
LOADERS = {
    "per_view": ("tf_per_view", "decode and crop for each view, float32 tf.data"),
    "torchvision": ("torchvision_loader", "torchvision and PIL, one worker per core"),
    "lightly": ("lightly_loader", "lightly's BYOLTransform, one worker per core"),
}
STEPS = {
    "pytorch": ("pytorch_byol", "PyTorch"),
    "pytorch_compile": ("pytorch_byol", "PyTorch, torch.compile"),
}


def available(
    names: Sequence[str], known: dict[str, tuple[str, str]]
) -> tuple[dict[str, object], list[str]]:
    """The modules of the peers that can be imported, and notes on the others.

    Args:
      names: requested peers; empty for all.
      known: LOADERS or STEPS.

    Raises:
      UserError: a requested peer cannot be imported.
    """
    modules, notes = {}, []
    for name, (file, label) in known.items():
        if names and name not in names:
            continue
        try:
            modules[name] = importlib.import_module(f"{__name__}.{file}")
        except (ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
            if names:
                raise UserError(f"--against={name} cannot be imported ({reason}).") from error
            notes.append(f"Not measured: {label}, which cannot be imported ({reason}).")
    return modules, notes
