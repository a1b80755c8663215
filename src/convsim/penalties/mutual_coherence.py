"""Mutual coherence (Bansal, Chen, Wang 2018, arXiv 1810.09102, Section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty
from convsim.similarity.cosine import gram, minus_identity


@dataclass(frozen=True)
class MutualCoherence(Penalty):
    """Penalise the worst entry: max |WWᵀ − I|, summed over groups; W the (M, C·n) filters.

    0 if and only if the filters of each group are orthonormal. The diagonal counts, as in the
    paper's equation, so norms are drawn to 1. Its gradient reaches the worst pair alone.

    Cost: M²·C·n multiplications.
    """

    reduction: LayerReduction = "sum"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        return minus_identity(gram(bank)).abs().amax((-2, -1)).sum()
