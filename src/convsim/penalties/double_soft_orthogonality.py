"""Double soft orthogonality (Bansal, Chen, Wang 2018, arXiv 1810.09102, Section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty
from convsim.precision import full_precision
from convsim.similarity.cosine import gram, minus_identity


@dataclass(frozen=True)
class DoubleSoftOrthogonality(Penalty):
    """Penalise rows and columns alike: ‖WWᵀ − I‖²_F + ‖WᵀW − I‖²_F, W the (M, C·n) filters.

    0 if and only if each group's W is square and orthogonal; otherwise at least |M − C·n| a group.

    Cost: M²·C·n + M·(C·n)² multiplications.
    """

    reduction: LayerReduction = "sum"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        with full_precision(bank.filters):
            flat_GMn = bank.filters.flatten(2)
            columns_Gnn = flat_GMn.mT @ flat_GMn
        rows = minus_identity(gram(bank)).square().sum()
        return rows + minus_identity(columns_Gnn).square().sum()
