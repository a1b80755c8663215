"""Inner products of a layer's filters, which kernel orthogonality is stated in.

Filters of one group share their input, so only they are compared. Shape suffixes: G groups, M
filters of a group, n elements of a filter.

Of vectors u that are x over their lengths, the squared products and their gradient are

    value = Σ_{i≠j} ⟨u_i, u_j⟩²,   g_i = ∂value/∂u_i = 4 Σ_{j≠i} ⟨u_i, u_j⟩ u_j,
    ∂value/∂x_i = (g_i − u_i⟨u_i, g_i⟩) / length of x_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsim.kernels import KernelBank
from convsim.precision import full_precision
from convsim.similarity.convolutional import unit_filters


def gram(bank: KernelBank) -> Tensor:
    """Compute ⟨K_i, K_j⟩ of every two filters of a group: (G, M, M)."""
    with full_precision(bank.filters):
        flat_GMn = bank.filters.flatten(2)
        return flat_GMn @ flat_GMn.mT


def cosines(bank: KernelBank) -> Tensor:
    """Compute the cosine of every two filters of a group, 0 for a zero filter: (G, M, M)."""
    with full_precision(bank.filters):
        unit_GMn = unit_filters(bank).flatten(2)
        return unit_GMn @ unit_GMn.mT


def squared_products(unit_GMn: Tensor) -> Tensor:
    """Sum ⟨u_i, u_j⟩² over all i ≠ j: (G,)."""
    return off_diagonal(unit_GMn @ unit_GMn.mT).square().sum((-2, -1))


def squared_products_and_gradient(unit_GMn: Tensor, divisor: float) -> tuple[Tensor, Tensor]:
    """Compute `squared_products` and its gradient g (G, M, n), both over a divisor.

    ‖u uᵀ‖ = ‖uᵀu‖: the smaller of the two is made, M × M or n × n.

    Cost: 2·M·n·min(M, n) multiplications.
    """
    filters, elements = unit_GMn.shape[-2:]
    if elements < filters:
        own_GM1 = unit_GMn.square().sum(-1, keepdim=True)
        gram_Gnn = unit_GMn.mT @ unit_GMn
        total_G = gram_Gnn.square().sum((-2, -1)) - own_GM1.square().sum((-2, -1))
        gradient_GMn = unit_GMn @ gram_Gnn - unit_GMn * own_GM1
    else:
        gram_GMM = unit_GMn @ unit_GMn.mT
        gram_GMM.diagonal(dim1=-2, dim2=-1).zero_()
        total_G = gram_GMM.square().sum((-2, -1))
        gradient_GMn = gram_GMM @ unit_GMn
    return total_G / divisor, gradient_GMn.mul_(4 / divisor)


def across(unit_GMn: Tensor, gradient_GMn: Tensor) -> Tensor:
    """Take from a gradient what only lengthens the vectors: g − u⟨u, g⟩, in place."""
    gradient_GMn -= unit_GMn * (unit_GMn * gradient_GMn).sum(-1, keepdim=True)
    return gradient_GMn


def off_diagonal(values_GMM: Tensor) -> Tensor:
    """Put 0 on the diagonals."""
    return values_GMM - torch.diag_embed(values_GMM.diagonal(dim1=-2, dim2=-1))


def minus_identity(values_GMM: Tensor) -> Tensor:
    """Subtract the identity."""
    count, like = values_GMM.shape[-1], values_GMM
    return values_GMM - torch.eye(count, dtype=like.dtype, device=like.device)
