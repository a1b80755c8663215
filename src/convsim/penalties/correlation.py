"""Squared correlation of sampled feature maps, and its gradient in closed form.

Layer normalization of each map over its S samples, c the samples less their mean,

    x_i = √S·u_i = c_i / √(‖c_i‖²/S + ε),   ρ_ij = ⟨u_i, u_j⟩ = ⟨x_i, x_j⟩ / S

is one kernel of torch's, and so is its gradient. Then, without the diagonal,

    value = Σ_{i≠j} ρ_ij² / (M(M−1)),   ∂value/∂x = 4 x ρ / (S·M(M−1)).

All take layers of one shape together. Shape suffixes: L layers, or any axes in front; S samples, M
maps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from convsim.similarity.cosine import squared_products, squared_products_and_gradient

_VARIANCE = 1e-5
"""ε, that of torch's normalization layers: what it makes constant, they make constant too."""


def squared_correlation(samples_LSM: Tensor) -> Tensor:
    """Average ρ_ij² over all pairs i ≠ j of columns; a constant column correlates with none."""
    standard_LMS = layer_norm(samples_LSM.mT, samples_LSM.shape[-2:-1], eps=_VARIANCE)
    return squared_products(standard_LMS) / _divisor(samples_LSM)


def squared_correlation_and_gradient(samples_LSM: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `squared_correlation` and its gradient (L, S, M).

    Cost: 2·S·M·min(S, M) multiplications.
    """
    maps_LMS, over = samples_LSM.mT.contiguous(), samples_LSM.shape[-2:-1]
    standard_LMS, mean, inverse = torch.native_layer_norm(maps_LMS, over, None, None, _VARIANCE)
    total_L, gradient_LMS = squared_products_and_gradient(standard_LMS, _divisor(samples_LSM))
    gradient_LMS, _, _ = torch.ops.aten.native_layer_norm_backward(
        gradient_LMS, maps_LMS, over, mean, inverse, None, None, [True, False, False]
    )
    return total_L, gradient_LMS.mT


def _divisor(samples_LSM: Tensor) -> int:
    samples, maps = samples_LSM.shape[-2:]
    return samples * samples * max(1, maps * (maps - 1))
