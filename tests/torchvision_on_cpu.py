"""torchvision beside the CPU build of PyTorch: `from torchvision_on_cpu import torchvision`.

torchvision's wheel was compiled against PyTorch for CUDA, and its operators do not load without it.
Its networks need none of them, but its import registers shapes for two that must then have been
declared. They cannot be called: nothing here computes them. Tests that import this file skip where
torch or torchvision is not installed.
"""

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs requirements-interop.txt")


def _declare_operators() -> list[torch.library.Library]:
    """Declares what the compiled part would, where it does not load; keep what is returned."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        pytest.skip("needs requirements-interop-no-deps.txt", allow_module_level=True)
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return [library]
    return []


_DECLARED = _declare_operators()

import torchvision  # noqa: E402

__all__ = ["torch", "torchvision"]
