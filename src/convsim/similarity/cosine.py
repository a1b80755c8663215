"""Inner products of a layer's filters, which kernel orthogonality is stated in.

Filters of one group share their input, so only they are compared. Shape suffixes: G groups, M
filters of a group, n elements of a filter.
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


def off_diagonal(values_GMM: Tensor) -> Tensor:
    """Put 0 on the diagonals."""
    return values_GMM - torch.diag_embed(values_GMM.diagonal(dim1=-2, dim2=-1))


def minus_identity(values_GMM: Tensor) -> Tensor:
    """Subtract the identity."""
    count, like = values_GMM.shape[-1], values_GMM
    return values_GMM - torch.eye(count, dtype=like.dtype, device=like.device)
