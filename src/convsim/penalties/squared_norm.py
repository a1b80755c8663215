"""The squared norm: weight decay, as a penalty."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty


@dataclass(frozen=True)
class SquaredNorm(Penalty):
    """Penalise ½‖K‖², whose gradient K is what SGD's ``weight_decay`` adds: the control of all.

    Cost: one pass over the weights.
    """

    reduction: LayerReduction = "sum"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        return 0.5 * bank.filters.square().sum()

    def value_and_gradient(self, bank: KernelBank) -> tuple[Tensor, Tensor]:
        """Compute the penalty of one layer and its gradient, the filters."""
        filters = bank.filters.detach()
        return self.value(bank).detach(), filters
