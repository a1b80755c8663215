"""Squared correlation of sampled feature maps, and its gradient in closed form.

With c the samples less their mean, u_i = c_i / ‖c_i‖ and ρ = uᵀu without its diagonal:

    value = Σ_{i≠j} ρ_ij² / (M(M−1)),   ∂value/∂u = 4 u ρ / (M(M−1)) =: g,
    ∂value/∂samples = (g − u·(u∘g summed over samples)) / ‖c‖, less its mean over samples.

All take layers of one shape together. Shape suffixes: L layers, or any axes in front; S samples, M
maps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsim.precision import exact_dtype
from convsim.similarity.cosine import off_diagonal


def centered(samples_LSM: Tensor) -> Tensor:
    """Take the mean over samples out; twice, for small differences of large maps."""
    once_LSM = samples_LSM - samples_LSM.mean(-2, keepdim=True)
    return once_LSM - once_LSM.mean(-2, keepdim=True)


def squared_correlation(samples_LSM: Tensor) -> Tensor:
    """Average ρ_ij² over all pairs i ≠ j of columns; a constant column correlates with none."""
    unit_LSM, _ = _unit_columns(centered(samples_LSM))
    return off_diagonal(unit_LSM.mT @ unit_LSM).square().sum((-2, -1)) / _pairs(samples_LSM)


def squared_correlation_and_gradient(samples_LSM: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `squared_correlation` and its gradient (L, S, M).

    ‖uᵀu‖ = ‖u uᵀ‖: the smaller of the two is made, M × M or S × S.

    Cost: 2·S·M·min(S, M) multiplications.
    """
    unit_LSM, inverse_L1M = _unit_columns(centered(samples_LSM))
    samples, maps = unit_LSM.shape[-2:]
    if samples < maps:
        own_L1M = unit_LSM.square().sum(-2, keepdim=True)
        gram_LSS = unit_LSM @ unit_LSM.mT
        total_L = gram_LSS.square().sum((-2, -1)) - own_L1M.square().sum((-2, -1))
        product_LSM = gram_LSS @ unit_LSM - unit_LSM * own_L1M
    else:
        correlation_LMM = unit_LSM.mT @ unit_LSM
        correlation_LMM.diagonal(dim1=-2, dim2=-1).zero_()
        total_L = correlation_LMM.square().sum((-2, -1))
        product_LSM = unit_LSM @ correlation_LMM
    product_LSM -= unit_LSM * (unit_LSM * product_LSM).sum(-2, keepdim=True)
    product_LSM *= inverse_L1M * (4 / _pairs(samples_LSM))
    gradient_LSM = product_LSM - product_LSM.mean(-2, keepdim=True)
    return total_L / _pairs(samples_LSM), gradient_LSM


def _unit_columns(centered_LSM: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each column by its norm, one of zeros staying so, and return what it was times."""
    # In float64, where squares of any float32 are in range.
    norm_L1M = torch.linalg.vector_norm(
        centered_LSM, dim=-2, keepdim=True, dtype=exact_dtype(centered_LSM.device)
    )
    live_L1M = norm_L1M >= torch.finfo(centered_LSM.dtype).tiny
    inverse_L1M = torch.where(live_L1M, 1 / torch.where(live_L1M, norm_L1M, 1), 0)
    inverse_L1M = inverse_L1M.to(centered_LSM.dtype)
    return centered_LSM * inverse_L1M, inverse_L1M


def _pairs(samples_LSM: Tensor) -> int:
    maps = samples_LSM.shape[-1]
    return max(1, maps * (maps - 1))
