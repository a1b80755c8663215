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
_PEAK = 1e12
"""The largest value of a map whose variance is taken as it is: any dtype holds its square."""


def squared_correlation(samples_LSM: Tensor) -> Tensor:
    """Average ρ_ij² over all pairs i ≠ j of columns; a constant column correlates with none."""
    maps_LMS = samples_LSM.mT * _scale(samples_LSM.detach())
    standard_LMS = layer_norm(maps_LMS, samples_LSM.shape[-2:-1], eps=_VARIANCE)
    return squared_products(standard_LMS) / _divisor(samples_LSM)


def squared_correlation_and_gradient(samples_LSM: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `squared_correlation` and its gradient (L, S, M).

    Cost: 2·S·M·min(S, M) multiplications.
    """
    scale_LM1, over = _scale(samples_LSM), samples_LSM.shape[-2:-1]
    maps_LMS = samples_LSM.mT.contiguous() * scale_LM1
    standard_LMS, mean, inverse = torch.native_layer_norm(maps_LMS, over, None, None, _VARIANCE)
    total_L, gradient_LMS = squared_products_and_gradient(standard_LMS, _divisor(samples_LSM))
    gradient_LMS, _, _ = torch.ops.aten.native_layer_norm_backward(
        gradient_LMS, maps_LMS, over, mean, inverse, None, None, [True, False, False]
    )
    return total_L, gradient_LMS.mul_(scale_LM1).mT


def _scale(samples_LSM: Tensor) -> Tensor:
    """Find what brings each map (L, M, 1) down to the largest value: 1 for any but a huge one."""
    peak_LM1 = samples_LSM.mT.abs().amax(-1, keepdim=True)
    return (_PEAK / peak_LM1).clamp(max=1)


def _divisor(samples_LSM: Tensor) -> int:
    samples, maps = samples_LSM.shape[-2:]
    return samples * samples * max(1, maps * (maps - 1))
