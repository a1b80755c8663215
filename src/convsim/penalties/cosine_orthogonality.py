"""Cosine orthogonality: kernel orthogonality of directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction
from convsim.penalties.closed_form import ClosedFormPenalty
from convsim.precision import full_precision
from convsim.similarity import pair_count
from convsim.similarity.convolutional import scaled_filters
from convsim.similarity.cosine import across, squared_products, squared_products_and_gradient


@dataclass(frozen=True)
class CosineOrthogonality(ClosedFormPenalty):
    """Penalise squared cosines of filters: ‖ŴŴᵀ − I‖²_F, Ŵ the filters over their norms.

    Belmekki et al. 2024 (arXiv 2411.03226) minimise it to show that kernel orthogonality does not
    control feature-map similarity. With ``reduction="mean"`` it is the mean of cos² over the pairs
    i < j of a layer, in [0, 1]; with "sum" the squared norm, twice the sum over pairs. It is 0 if
    and only if the filters of each group are orthogonal. Norms do not matter; a zero filter is
    orthogonal to all.

    Cost: M·C·n·min(M, C·n) multiplications, n taps of a kernel, and twice as many for the gradient.
    """

    reduction: LayerReduction = "mean"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        with full_precision(bank.filters):
            unit_GMn = scaled_filters(bank.filters.flatten(3), "unit")[0].flatten(2)
            return squared_products(unit_GMn).sum() / self._divisor(bank)

    @torch.no_grad()
    def value_and_gradient(self, bank: KernelBank) -> tuple[Tensor, Tensor]:
        """Compute the penalty of one layer and its gradient in closed form."""
        with full_precision(bank.filters):
            unit_GMCn, norm, peak = scaled_filters(bank.filters.flatten(3), "unit")
            unit_GMn = unit_GMCn.flatten(2)
            total_G, gradient_GMn = squared_products_and_gradient(unit_GMn, self._divisor(bank))
            gradient_GMCn = across(unit_GMn, gradient_GMn).view_as(unit_GMCn).div_(norm)
            return total_G.sum(), gradient_GMCn.div_(peak).unflatten(-1, bank.kernel)

    def _divisor(self, bank: KernelBank) -> int:
        return 1 if self.reduction == "sum" else max(1, 2 * pair_count(bank, "all"))

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether there are pairs."""
        return pair_count(bank, "all") > 0
