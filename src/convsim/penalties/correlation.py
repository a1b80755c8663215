"""Squared correlation of sampled feature maps, and its gradient in closed form.

With c the samples less their mean, u_i = c_i / ‖c_i‖ and ρ = uᵀu without its diagonal:

    value = Σ_{i≠j} ρ_ij² / (M(M−1)),   ∂value/∂u = 4 u ρ / (M(M−1)) =: g,
    ∂value/∂samples = (g − u·(u∘g summed over samples)) / ‖c‖, less its mean over samples.

Shape suffixes: S samples, M maps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsim.precision import exact_dtype
from convsim.similarity.cosine import off_diagonal


def centered(samples_SM: Tensor) -> Tensor:
    """Take the mean over samples out; twice, for small differences of large maps."""
    once_SM = samples_SM - samples_SM.mean(0)
    return once_SM - once_SM.mean(0)


def squared_correlation(samples_SM: Tensor) -> Tensor:
    """Average ρ_ij² over all pairs i ≠ j of columns; a constant column correlates with none."""
    unit_SM, _ = _unit_columns(centered(samples_SM))
    return off_diagonal(unit_SM.mT @ unit_SM).square().sum() / _pairs(samples_SM)


def squared_correlation_and_gradient(samples_SM: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `squared_correlation` and its gradient (S, M).

    ‖uᵀu‖ = ‖u uᵀ‖: the smaller of the two is made, M × M or S × S.

    Cost: 2·S·M·min(S, M) multiplications.
    """
    unit_SM, inverse_M = _unit_columns(centered(samples_SM))
    samples, maps = unit_SM.shape
    if samples < maps:
        own_M = unit_SM.square().sum(0)
        gram_SS = unit_SM @ unit_SM.mT
        total = gram_SS.square().sum() - own_M.square().sum()
        product_SM = gram_SS @ unit_SM - unit_SM * own_M
    else:
        correlation_MM = unit_SM.mT @ unit_SM
        correlation_MM.fill_diagonal_(0)
        total = correlation_MM.square().sum()
        product_SM = unit_SM @ correlation_MM
    product_SM -= unit_SM * (unit_SM * product_SM).sum(0)
    product_SM *= inverse_M * (4 / _pairs(samples_SM))
    return total / _pairs(samples_SM), product_SM - product_SM.mean(0)


def _unit_columns(centered_SM: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each column by its norm, one of zeros staying so, and return what it was times."""
    # In float64, where squares of any float32 are in range.
    norm_M = torch.linalg.vector_norm(centered_SM, dim=0, dtype=exact_dtype(centered_SM.device))
    live_M = norm_M >= torch.finfo(centered_SM.dtype).tiny
    inverse_M = torch.where(live_M, 1 / torch.where(live_M, norm_M, 1), 0).to(centered_SM.dtype)
    return centered_SM * inverse_M, inverse_M


def _pairs(samples_SM: Tensor) -> int:
    maps = samples_SM.shape[1]
    return max(1, maps * (maps - 1))
