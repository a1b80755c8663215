"""What a penalty on feature maps offers: a value of sampled maps, and that value's gradient.

Shape suffixes: S samples, M maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, check_reduction
from convsim.precision import full_precision


class ActivationPenalty(ABC):
    """A scalar that grows as the feature maps of one layer repeat each other on a batch.

    It needs a forward pass: `convsim.Regularizer` samples the maps as the layers put them out.

    Attributes:
        reduction: How the layers of a model are put together: "mean" over the layers that the
            penalty acts on, or "sum" over all.
        samples: At how many positions a layer's maps are read, spread evenly over images and
            pixels; all of them if there are no more.
    """

    reduction: LayerReduction = "mean"
    samples: int

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        if not isinstance(self.samples, int) or self.samples < 2:
            raise ConvsimError(f"samples must be an integer ≥ 2; got {self.samples!r}.")

    @abstractmethod
    def value(self, samples_SM: Tensor) -> Tensor:
        """Compute the penalty of one layer's maps (S, M), a differentiable scalar."""

    def value_and_gradient(self, samples_SM: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the penalty and its gradient (S, M), both detached.

        By autograd; a penalty with a closed form overrides it.
        """
        with torch.enable_grad():
            samples_SM = samples_SM.detach().requires_grad_()
            value = self.value(samples_SM)
            (gradient,) = torch.autograd.grad(value, samples_SM)
        return value.detach(), gradient

    def penalize(self, samples_SM: Tensor) -> Tensor:
        """Compute the penalty of samples, whose gradient is `value_and_gradient`'s."""
        with full_precision(samples_SM):
            if torch.compiler.is_compiling():
                return self.value(samples_SM)
            value: Tensor = _InClosedForm.apply(samples_SM, self)  # type: ignore[no-untyped-call]
            return value

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether the layer has two maps or more."""
        groups, filters = bank.filters.shape[:2]
        return groups * filters > 1


class _InClosedForm(torch.autograd.Function):
    """A penalty with the gradient that it knows itself, and autograd's for a second derivative."""

    @staticmethod
    def forward(ctx: Any, samples_SM: Tensor, penalty: ActivationPenalty) -> Tensor:
        ctx.penalty = penalty
        if not ctx.needs_input_grad[0]:
            return penalty.value(samples_SM)
        value, gradient_SM = penalty.value_and_gradient(samples_SM)
        ctx.save_for_backward(samples_SM, gradient_SM)
        return value

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:
        samples_SM, gradient_SM = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            with full_precision(samples_SM):
                value = ctx.penalty.value(samples_SM)
            (gradient_SM,) = torch.autograd.grad(value, samples_SM, create_graph=True)
        return gradient_SM * factor, None
