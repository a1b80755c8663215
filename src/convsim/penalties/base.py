"""What every penalty offers: a value for one layer's filters, and that value's gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.precision import full_precision

LayerReduction = Literal["mean", "sum"]
"""How the layers of a model are put together."""


class Penalty(ABC):
    """A scalar that grows as the filters of one layer repeat each other; it takes kernels alone.

    Attributes:
        reduction: How the layers of a model are put together: "mean" over the layers that the
            penalty acts on, or "sum" over all.
    """

    reduction: LayerReduction = "mean"

    def __post_init__(self) -> None:
        check_reduction(self.reduction)

    @property
    def takes_shares(self) -> bool:
        """Whether `values` and `add_gradients_` take banks with a share: one rank's filters."""
        return False

    @abstractmethod
    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer, a differentiable scalar."""

    def values(self, banks: Sequence[KernelBank]) -> list[Tensor]:
        """Compute the penalty of each layer; one after the other unless overridden."""
        return [self.value(bank) for bank in banks]

    def value_and_gradient(self, bank: KernelBank) -> tuple[Tensor, Tensor]:
        """Compute the penalty and its gradient (G, M, C, k), both detached.

        By autograd; a penalty with a closed form overrides it.
        """
        if torch.compiler.is_compiling():  # which traces torch.func, and breaks at autograd
            with full_precision(bank.filters):
                gradient, value = torch.func.grad_and_value(
                    lambda filters: self.value(bank.with_filters(filters))
                )(bank.filters.detach())
            return value, gradient
        with torch.enable_grad(), full_precision(bank.filters):
            filters = bank.filters.detach().requires_grad_()
            value = self.value(bank.with_filters(filters))
            (gradient,) = torch.autograd.grad(value, filters)
        return value.detach(), gradient

    @torch.no_grad()
    def add_gradients_(
        self,
        banks: Sequence[KernelBank],
        gradients: Sequence[Tensor | None],
        factor: float,
    ) -> list[Tensor]:
        """Add factor · gradient of each layer's penalty to its (G, M, C, k) tensor, in place.

        A layer with None gets no gradient. One layer after the other; a penalty that can take them
        together overrides it.

        Returns:
            Each layer's penalty, detached and without the factor.
        """
        values = []
        for bank, gradient in zip(banks, gradients, strict=True):
            if gradient is None:
                values.append(self.value(bank))
                continue
            value, own = self.value_and_gradient(bank)
            gradient.add_(own, alpha=factor)
            values.append(value)
        return values

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether the penalty of this layer depends on its filters."""
        return True


def check_reduction(reduction: str) -> None:
    """Refuse an unknown way to put layers together."""
    if reduction not in get_args(LayerReduction):
        raise ConvsimError(f"reduction must be 'mean' or 'sum'; got {reduction!r}.")
