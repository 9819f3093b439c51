"""A step of BYOL in PyTorch, written for the bench: as good as a plain one gets.

Channels last, autocast for bfloat16, fused lists of tensors (foreach) in LARS and in the target's
moving average, TF32 where the device has it, and nothing that waits for the device. It does the
work of byol.update, with as many FLOPs: two views through the online network, two through the
target, the same heads, no labels.
"""

import contextlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from byol_jax import byol
from byol_jax.models import MLP
from experiments.bench.peers import pytorch_views
from experiments.bench.peers.pytorch_networks import ResNet, mlp


class Network(nn.Module):
    """Encoder and projector, and a predictor for the online network."""

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
        # Biases and norms get neither decay nor a ratio.
        self.kernels = [p for p in parameters if p.ndim > 1]
        self.others = [p for p in parameters if p.ndim <= 1]
        self.momenta = [torch.zeros_like(p) for p in self.kernels + self.others]
        self.decay, self.momentum, self.trust = decay, momentum, trust

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the gradients that lie with the parameters, which are used up."""
        gradients = [p.grad for p in self.kernels]
        torch._foreach_add_(gradients, self.kernels, alpha=self.decay)
        of_weights = torch.stack(torch._foreach_norm(self.kernels))
        of_gradients = torch.stack(torch._foreach_norm(gradients))
        known = (of_weights > 0) & (of_gradients > 0)
        ratios = torch.where(known, self.trust * of_weights / of_gradients, 1.0)
        torch._foreach_mul_(gradients, list(ratios.unbind()))
        torch._foreach_mul_(self.momenta, self.momentum)
        torch._foreach_add_(self.momenta, gradients + [p.grad for p in self.others])
        torch._foreach_add_(self.kernels + self.others, self.momenta, alpha=-rate)


def device() -> str:
    """Where PyTorch computes: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Step:
    """The step, with all its state.

    Args:
      ours: whose networks, policy and sizes it takes.
      batch: uint8 (2, batch, height, width, channels), which every step sees.
      dtype: "float32" or "bfloat16".
      compiled: whether views, networks and loss go through torch.compile.
      rate: learning rate.
      tau: decay of the target.
    """

    def __init__(
        self,
        ours: byol.Learner,
        batch: np.ndarray,
        dtype: str,
        *,
        compiled: bool,
        rate: float = 0.2,
        tau: float = 0.996,
    ):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        self.device = device()
        place = {"device": self.device, "memory_format": torch.channels_last}
        self.online = Network(ours, is_online=True).to(**place)
        self.target = Network(ours, is_online=False).to(**place)
        followed = dict(self.online.named_parameters())
        self.pairs = [(p, followed[name]) for name, p in self.target.named_parameters()]
        for xi, theta in self.pairs:
            xi.requires_grad_(False).copy_(theta.detach())
        self.lars = Lars(list(self.online.parameters()), 1.5e-6, 0.9, 1e-3)
        self.policy, self.rate, self.tau = ours.policy, rate, tau
        self.views = torch.from_numpy(batch).to(self.device)
        self.dtype = dtype
        compile_ = torch.compile if compiled else lambda function: function
        self._augmented, self._loss = compile_(self._augment), compile_(self._loss_of)

    def _augment(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        policy = self.policy
        return (
            pytorch_views.augment(policy.view1, views[0], policy),
            pytorch_views.augment(policy.view2, views[1], policy),
        )

    def _loss_of(self, view1: torch.Tensor, view2: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            z1, z2 = self.target(view1), self.target(view2)
        q1, q2 = self.online(view1), self.online(view2)
        agreed = functional.cosine_similarity(q1, z2) + functional.cosine_similarity(q2, z1)
        return (4 - 2 * agreed).mean()

    def __call__(self) -> torch.Tensor:
        """One update; returns its loss, float32 (), which the caller may have to wait for."""
        with torch.no_grad():
            view1, view2 = self._augmented(self.views)
        precision = contextlib.nullcontext()
        if self.dtype == "bfloat16":
            precision = torch.autocast(self.device, torch.bfloat16)
        with precision:
            loss = self._loss(view1, view2)
        loss.backward()
        self.lars.step(self.rate)
        with torch.no_grad():
            xi, theta = zip(*self.pairs, strict=True)
            torch._foreach_lerp_(xi, theta, 1 - self.tau)
        for parameter in self.online.parameters():
            parameter.grad = None
        return loss.detach()

    def wait(self, loss: torch.Tensor) -> None:
        """Returns when the device is done with all steps up to that of a loss."""
        loss.item()
