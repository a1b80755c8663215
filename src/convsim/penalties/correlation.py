"""Squared correlation of sampled feature maps, and its gradient in closed form.

With c the samples less their mean, S of them, u_i = c_i / √(‖c_i‖² + S·ε) and ρ = uᵀu without its
diagonal:

    value = Σ_{i≠j} ρ_ij² / (M(M−1)),   ∂value/∂u = 4 u ρ / (M(M−1)) =: g,
    ∂value/∂samples = (g − u·(u∘g summed over samples)) / √(‖c‖² + S·ε), less its mean over samples.

All take layers of one shape together. Shape suffixes: L layers, or any axes in front; S samples, M
maps.
"""

from __future__ import annotations

from torch import Tensor

from convsim.precision import exact_dtype
from convsim.similarity.cosine import squared_products, squared_products_and_gradient

_VARIANCE = 1e-5
"""ε, that of torch's normalization layers: what it makes constant, they make constant too."""


def centered(samples_LSM: Tensor) -> Tensor:
    """Take the mean over samples out; twice, for small differences of large maps."""
    once_LSM = samples_LSM - samples_LSM.mean(-2, keepdim=True)
    return once_LSM - once_LSM.mean(-2, keepdim=True)


def squared_correlation(samples_LSM: Tensor) -> Tensor:
    """Average ρ_ij² over all pairs i ≠ j of columns; a constant column correlates with none."""
    centered_LSM = centered(samples_LSM)
    unit_LSM = centered_LSM * _inverse_lengths(centered_LSM)
    return squared_products(unit_LSM.mT) / _pairs(samples_LSM)


def squared_correlation_and_gradient(samples_LSM: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `squared_correlation` and its gradient (L, S, M).

    Cost: 2·S·M·min(S, M) multiplications.
    """
    centered_LSM = centered(samples_LSM)
    inverse_L1M = _inverse_lengths(centered_LSM)
    total_L, gradient_LMS = squared_products_and_gradient((centered_LSM * inverse_L1M).mT)
    gradient_LSM = gradient_LMS.mT * (inverse_L1M / _pairs(samples_LSM))
    gradient_LSM -= gradient_LSM.mean(-2, keepdim=True)
    return total_L / _pairs(samples_LSM), gradient_LSM


def _inverse_lengths(centered_LSM: Tensor) -> Tensor:
    """Compute 1 / √(‖c‖² + S·ε) of each column."""
    exact_LSM = centered_LSM.to(exact_dtype(centered_LSM.device))  # any square is in range
    squares_L1M = exact_LSM.square().sum(-2, keepdim=True)
    least = centered_LSM.shape[-2] * _VARIANCE
    return (squares_L1M + least).rsqrt().to(centered_LSM.dtype)


def _pairs(samples_LSM: Tensor) -> int:
    maps = samples_LSM.shape[-1]
    return max(1, maps * (maps - 1))
