"""Muon on convolution kernels, SGD on all else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from convsim.kernels import conv_layers

OTHERS = 4.0
"""The other parameters' learning rate, as a multiple of the kernels'."""


class KernelMuon(torch.optim.SGD):
    """Step every convolution's kernel by Muon, and biases, norms and linear layers by SGD.

    Muon sees a kernel as a matrix, one row a filter. Its step is the momentum, orthogonalized by a
    Newton-Schulz iteration (Jordan et al. 2024; `torch.optim.Muon`, with its own momentum and
    scaling), so that all directions among a layer's filters are learnt at one speed. Its weight
    decay is decoupled; the other parameters have SGD's.

    Args:
        model: Whose parameters are stepped.
        lr: The kernels' learning rate; the others' is `OTHERS` times that.
        momentum: Of SGD.
        weight_decay: For all.
    """

    def __init__(self, model: nn.Module, lr: float, momentum: float, weight_decay: float) -> None:
        modules: list[Any] = [layer.module for layer in conv_layers(model)]
        kernels = [module.weight for module in modules]
        own = {id(kernel) for kernel in kernels}
        others = [p for p in model.parameters() if id(p) not in own]
        groups = [{"params": kernels, "lr": lr}, {"params": others, "lr": OTHERS * lr}]
        super().__init__(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._matrices = [nn.Parameter(_matrix(kernel, kernel)) for kernel in kernels]
        self._muon = torch.optim.Muon(self._matrices, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kernels: list[Tensor] = self.param_groups[0]["params"]
        gradients = [kernel.grad for kernel in kernels]
        for kernel, matrix, gradient in zip(kernels, self._matrices, gradients, strict=True):
            matrix.data = _matrix(kernel, kernel)  # the same memory, wherever the kernel lies now
            matrix.grad = None if gradient is None else _matrix(gradient, kernel)
            kernel.grad = None  # SGD steps what has a gradient
        self._muon.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        self._muon.step()
        super().step()
        for kernel, gradient in zip(kernels, gradients, strict=True):
            kernel.grad = gradient
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return SGD's state, and Muon's beside it."""
        return super().state_dict() | {"muon": self._muon.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        rest = dict(state_dict)
        self._muon.load_state_dict(rest.pop("muon"))
        super().load_state_dict(rest)


def _matrix(tensor: Tensor, kernel: Tensor) -> Tensor:
    """See a kernel, or its gradient, as filters × inputs, in the kernel's own order in memory."""
    if not kernel.is_contiguous():  # channels last
        tensor = tensor.movedim(1, -1)
    return tensor.detach().reshape(len(kernel), -1)
