"""Soft orthogonality (Bansal, Chen, Wang 2018, arXiv 1810.09102, Section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty
from convsim.similarity.cosine import gram, minus_identity


@dataclass(frozen=True)
class SoftOrthogonality(Penalty):
    """Penalise the distance of the filters from orthonormal ones: ‖WWᵀ − I‖²_F.

    W is (M, C·n), a filter a row; the paper's W is its transpose. 0 if and only if the filters of
    each group are orthonormal, which needs M ≤ C·n. Norms matter: they are drawn to 1.

    Deviation: filters of different groups are not compared.

    Cost: M²·C·n multiplications.
    """

    reduction: LayerReduction = "sum"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        return minus_identity(gram(bank)).square().sum()
