"""Cosine orthogonality: kernel orthogonality of directions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty
from convsim.similarity import pair_count
from convsim.similarity.cosine import cosines, off_diagonal


@dataclass(frozen=True)
class CosineOrthogonality(Penalty):
    """Penalise squared cosines of filters: ‖ŴŴᵀ − I‖²_F, Ŵ the filters over their norms.

    Belmekki et al. 2024 (arXiv 2411.03226) minimise it to show that kernel orthogonality does not
    control feature-map similarity. With ``reduction="mean"`` it is the mean of cos² over the pairs
    i < j of a layer, in [0, 1]; with "sum" the squared norm, twice the sum over pairs. It is 0 if
    and only if the filters of each group are orthogonal. Norms do not matter; a zero filter is
    orthogonal to all.

    Cost: M²·C·n multiplications, n taps of a kernel.
    """

    reduction: LayerReduction = "mean"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        total = off_diagonal(cosines(bank)).square().sum()
        return total if self.reduction == "sum" else total / max(1, 2 * pair_count(bank, "all"))

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether there are pairs."""
        return pair_count(bank, "all") > 0
