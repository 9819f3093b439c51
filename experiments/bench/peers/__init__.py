"""What byol_jax is measured beside. Nothing here is needed to train with it.

`available` says which of them can run; for what cannot be imported there is a sentence.
"""

import importlib
from collections.abc import Sequence

from byol_jax.errors import UserError

# Peer: the file that holds it, and its name in words.
LOADERS = {
    "per_view": ("tf_per_view", "decode and crop for each view, float32 tf.data"),
    "torchvision": ("torchvision_loader", "torchvision and PIL, a worker a core"),
    "lightly": ("lightly_loader", "lightly's BYOLTransform, a worker a core"),
}
STEPS = {
    "pytorch": ("pytorch_byol", "PyTorch"),
    "pytorch_compile": ("pytorch_byol", "PyTorch, torch.compile"),
}
NONE = "none"


def available(
    names: Sequence[str], of: dict[str, tuple[str, str]]
) -> tuple[dict[str, object], list[str]]:
    """The modules of those peers that can be imported, and sentences on the others.

    Args:
      names: which peers were asked for; empty for all.
      of: LOADERS or STEPS.

    Raises:
      UserError: one that was asked for cannot be imported.
    """
    modules, notes = {}, []
    for name, (file, words) in of.items():
        if names and name not in names:
            continue
        try:
            modules[name] = importlib.import_module(f"{__name__}.{file}")
        except (ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
            if names:
                raise UserError(f"--against={name} cannot be imported ({reason}).") from error
            notes.append(f"Not measured: {words}, as it cannot be imported ({reason}).")
    return modules, notes
