"""Where a penalty's gradient goes: straight into ``weight.grad``, or apart and then passed on."""

from __future__ import annotations

import torch
from torch import Tensor

from convsim.kernels import ConvLayer, KernelBank


def fits_in_place(weight: Tensor) -> bool:
    """Tell whether a gradient can be added to ``weight.grad`` as it is computed."""
    return weight.is_leaf and weight.dtype in (torch.float32, torch.float64)


def place(layer: ConvLayer, weight: Tensor, bank: KernelBank, apart: bool) -> Tensor | None:
    """Lay out where a layer's gradient (G, M, C, k) is added: a view of ``weight.grad``, or zeros.

    None for a weight that requires none.
    """
    if not weight.requires_grad:
        return None
    if apart:
        return torch.zeros_like(bank.filters)
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return layer.bank(weight.grad).filters


def pass_on(weight: Tensor, bank: KernelBank, gradient: Tensor) -> None:
    """Add a gradient (G, M, C, k) to ``weight.grad``, or to the parameters it is computed from."""
    own = bank.to_weight(gradient).to(weight.dtype)
    if not weight.is_leaf:
        weight.backward(own)
    elif weight.grad is None:
        weight.grad = own
    else:
        weight.grad += own
