"""A step of BYOL in PyTorch, written for this benchmark with the usual optimisations.

Channels last, autocast for bfloat16, fused or foreach operations in the optimizer and in the
target's moving average, TF32 where available, and no synchronisation with the device. It does the
work of byol.update with the same FLOPs: two views through the online network, two through the
target, the same heads, no labels.
"""

import contextlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from byol_jax import byol
from byol_jax.models import MLP
from experiments.bench.peers import pytorch_views
from experiments.bench.peers.pytorch_networks import ResNet, mlp


class Network(nn.Module):
    """Encoder and projector; the online network also has a predictor."""

    def __init__(self, ours: byol.Learner, is_online: bool):
        super().__init__()
        self.encoder = ResNet(ours.online.encoder)
        projector: MLP = ours.online.projector
        self.projector = mlp(self.encoder.features, projector)
        self.predictor = mlp(projector.output_size, ours.online.predictor) if is_online else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102 (of nn.Module)
        x = self.projector(self.encoder(x))
        return (x if self.predictor is None else self.predictor(x)).float()


class Lars:
    """optim.lars on lists of tensors: m <- momentum m + ratio (g + decay w); w <- w - rate m."""

    def __init__(self, parameters: list[torch.Tensor], decay: float, momentum: float, trust: float):
        # Biases and norms have neither weight decay nor a trust ratio.
        self.kernels = [p for p in parameters if p.ndim > 1]
        self.others = [p for p in parameters if p.ndim <= 1]
        self.momenta = [torch.zeros_like(p) for p in self.kernels + self.others]
        self.decay, self.momentum, self.trust = decay, momentum, trust

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the gradients of the parameters, which it overwrites."""
        gradients = [p.grad for p in self.kernels]
        torch._foreach_add_(gradients, self.kernels, alpha=self.decay)
        param_norms = torch.stack(torch._foreach_norm(self.kernels))
        grad_norms = torch.stack(torch._foreach_norm(gradients))
        is_defined = (param_norms > 0) & (grad_norms > 0)
        ratios = torch.where(is_defined, self.trust * param_norms / grad_norms, 1.0)
        torch._foreach_mul_(gradients, list(ratios.unbind()))
        torch._foreach_mul_(self.momenta, self.momentum)
        torch._foreach_add_(self.momenta, gradients + [p.grad for p in self.others])
        torch._foreach_add_(self.kernels + self.others, self.momenta, alpha=-rate)


class AdamW:
    """optim.adamw, by PyTorch's own."""

    def __init__(self, parameters: list[torch.Tensor], decay: float):
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)

    def step(self, rate: float) -> None:
        """One update from the gradients of the parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()


def device() -> str:
    """The device that PyTorch uses: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Step:
    """The step with its state.

    Args:
      ours: learner with the networks, augmentations and sizes; its `augment` is an image policy.
      batch: uint8 (batch, 2, height, width, channels), the same for every step.
      dtype: "float32" or "bfloat16".
      compiled: whether augmentations, networks and loss use torch.compile.
      optimizer: makes the optimizer of a list of parameters; by default the paper's LARS.
      rate: learning rate; may be set before each step, and so may `tau`.
      tau: target decay.
    """

    def __init__(
        self,
        ours: byol.Learner,
        batch: np.ndarray,
        dtype: str,
        *,
        compiled: bool,
        optimizer: Callable[[list[torch.Tensor]], Lars | AdamW] | None = None,
        rate: float = 0.2,
        tau: float = 0.996,
    ):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        self.device = device()
        layout = {"device": self.device, "memory_format": torch.channels_last}
        self.online = Network(ours, is_online=True).to(**layout)
        self.target = Network(ours, is_online=False).to(**layout)
        online = dict(self.online.named_parameters())
        self.pairs = [(p, online[name]) for name, p in self.target.named_parameters()]
        for xi, theta in self.pairs:
            xi.requires_grad_(False).copy_(theta.detach())
        optimizer = optimizer or partial(Lars, decay=1.5e-6, momentum=0.9, trust=1e-3)
        self.optimizer = optimizer(list(self.online.parameters()))
        self.policy, self.rate, self.tau = ours.augment, rate, tau
        self.crops = torch.from_numpy(batch).to(self.device)
        self.dtype = dtype
        compile_ = torch.compile if compiled else lambda function: function
        self._augmented, self._loss = compile_(self._augment), compile_(self._compute_loss)

    def _augment(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        policy = self.policy
        return (
            pytorch_views.augment(policy.view1, crops[:, 0], policy),
            pytorch_views.augment(policy.view2, crops[:, 1], policy),
        )

    def _compute_loss(self, view1: torch.Tensor, view2: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            z1, z2 = self.target(view1), self.target(view2)
        q1, q2 = self.online(view1), self.online(view2)
        similarity = functional.cosine_similarity(q1, z2) + functional.cosine_similarity(q2, z1)
        return (4 - 2 * similarity).mean()

    def __call__(self) -> torch.Tensor:
        """One update; returns its loss, float32 (), possibly before it is computed."""
        with torch.no_grad():
            views = self._augmented(self.crops)
        return self.update(*views)

    def update(self, view1: torch.Tensor, view2: torch.Tensor) -> torch.Tensor:
        """One update on augmented views (batch, channels, height, width); returns its loss."""
        precision = contextlib.nullcontext()
        if self.dtype == "bfloat16":
            precision = torch.autocast(self.device, torch.bfloat16)
        with precision:
            loss = self._loss(view1, view2)
        loss.backward()
        self.optimizer.step(self.rate)
        with torch.no_grad():
            xi, theta = zip(*self.pairs, strict=True)
            torch._foreach_lerp_(xi, theta, 1 - self.tau)
        for parameter in self.online.parameters():
            parameter.grad = None
        return loss.detach()

    def wait(self, loss: torch.Tensor) -> None:
        """Returns when the device has computed this loss."""
        loss.item()
