"""Where a penalty's gradient goes: straight into ``weight.grad``, or apart and added later."""

from __future__ import annotations

import torch
from torch import Tensor

from convsim.kernels import ConvLayer, KernelBank


def fits_in_place(weight: Tensor) -> bool:
    """Tell whether a gradient can be added to ``weight.grad`` as it is computed."""
    exact = weight.dtype in (torch.float32, torch.float64)
    return weight.is_leaf and exact and _gradient_dtype(weight) == weight.dtype


def gradient_target(
    layer: ConvLayer, weight: Tensor, bank: KernelBank, in_place: bool
) -> Tensor | None:
    """Lay out where a layer's gradient (G, M, C, k) is added: a view of ``weight.grad``, or zeros.

    None for a weight that requires none.
    """
    if not weight.requires_grad:
        return None
    if not in_place:
        return torch.zeros_like(bank.filters)
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return layer.bank(weight.grad).filters


def add_gradient(weight: Tensor, bank: KernelBank, gradient: Tensor) -> None:
    """Add a gradient (G, M, C, k) to ``weight.grad``, or to the parameters it is computed from."""
    own = bank.to_weight(gradient)
    if not weight.is_leaf:
        weight.backward(own.to(weight.dtype))
    elif weight.grad is None:
        weight.grad = own.to(_gradient_dtype(weight))
    else:
        weight.grad += own.to(weight.grad.dtype)


def _gradient_dtype(weight: Tensor) -> torch.dtype:
    """Read the dtype that a weight's gradient has or shall have."""
    if weight.grad is not None:
        return weight.grad.dtype
    found: torch.dtype = (
        getattr(weight, "grad_dtype", None) if weight.is_leaf else None
    ) or weight.dtype
    return found
