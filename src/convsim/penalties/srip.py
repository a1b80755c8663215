"""Spectral restricted isometry (Bansal, Chen, Wang 2018, arXiv 1810.09102, Section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty
from convsim.similarity.cosine import gram, minus_identity


@dataclass(frozen=True)
class SpectralRestrictedIsometry(Penalty):
    """Penalise the spectral norm: σ(WWᵀ − I), summed over groups; W the (M, C·n) filters.

    0 if and only if the filters of each group are orthonormal.

    Deviation: the published code estimates σ by two steps of power iteration from a random vector,
    so that its value is too small and differs from call to call. Here σ is exact, by eigenvalues.

    Cost: M²·C·n + M³ multiplications.
    """

    reduction: LayerReduction = "sum"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        excess = minus_identity(gram(bank))
        # eigvalsh refuses what is not finite, so NaN comes in again by a factor.
        eigenvalues: Tensor = torch.linalg.eigvalsh(excess.nan_to_num(0, 0, 0))
        valid = torch.where(excess.isfinite().all(), 1.0, torch.nan).to(excess)
        return eigenvalues.abs().amax(-1).sum() * valid
