"""What a penalty on feature maps offers: a value of sampled maps, and that value's gradient.

Layers of one shape are taken together. Shape suffixes: L layers, S samples, M maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.backends.problem import places_of, together
from convsim.caching import tensors_are_real
from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, check_reduction
from convsim.precision import at_least_float32, full_precision

Gradients = Callable[[Tensor], Sequence[Tensor]]
"""Called with a factor, returns it times the gradient of every layer's samples (S, M)."""


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
    def value(self, samples_LSM: Tensor) -> Tensor:
        """Compute the penalty (L,) of layers' maps (L, S, M), differentiably."""

    def value_and_gradient(self, samples_LSM: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the penalty (L,) and its gradient (L, S, M), both detached.

        By autograd; a penalty with a closed form overrides it.
        """
        with torch.enable_grad():
            samples_LSM = samples_LSM.detach().requires_grad_()
            value = self.value(samples_LSM)
            (gradient,) = torch.autograd.grad(value.sum(), samples_LSM)
        return value.detach(), gradient

    def values(self, samples: Sequence[Tensor]) -> list[Tensor]:
        """Compute the penalty of each layer's samples (S, M), differentiably, in float32 at least.

        Under torch.compile and torch.func too, which follow only torch's own operations.
        """

        def compute(_: object, alike: Sequence[Tensor]) -> Sequence[Tensor]:
            with full_precision(alike[0]):
                return self.value(_stack(alike)).unbind()

        return together(samples, lambda one: (one.shape, one.dtype, one.device), compute)

    def total(self, samples: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Sum weight · penalty over layers' samples (S, M), with `value_and_gradient`'s gradient.

        The gradient is computed together with the value and kept until the backward pass, in as
        much memory as the samples take; second derivatives use autograd.

        Returns:
            A scalar of float32 at the least, on the first layer's device.
        """
        if tensors_are_real(samples[0]):
            total: Tensor = _InClosedForm.apply(self, weights, *samples)  # type: ignore[no-untyped-call]
            return total
        return self._total_by_autograd(samples, weights)

    def total_and_gradients(
        self, samples: Sequence[Tensor], weights: Sequence[float]
    ) -> tuple[Tensor, Gradients]:
        """Compute `total`, and what gives its gradient.

        All in few operations: their number is what costs on a GPU.
        """
        kinds = [(x.shape, x.dtype, x.device, by) for x, by in zip(samples, weights, strict=True)]
        groups = list(places_of(kinds).values())
        values: dict[float, list[Tensor]] = {}
        gradients = []
        for alike in groups:
            samples_LSM = _stack([samples[i] for i in alike])
            with full_precision(samples_LSM):
                value_L, gradient_LSM = self.value_and_gradient(samples_LSM)
            values.setdefault(weights[alike[0]], []).append(value_L.to(samples[0].device))
            gradients.append(gradient_LSM)
        totals = [torch.cat(own).sum() * by for by, own in values.items()]

        def times(factor: Tensor) -> list[Tensor]:
            found: dict[int, Tensor] = {}
            for alike, gradient_LSM in zip(groups, gradients, strict=True):
                by = (factor * weights[alike[0]]).to(gradient_LSM.device)
                own_LSM = (gradient_LSM * by).to(samples[alike[0]].dtype)
                found |= dict(zip(alike, own_LSM.unbind(), strict=True))
            return [found[i] for i in range(len(samples))]

        return totals[0] if len(totals) == 1 else torch.stack(totals).sum(), times

    def _total_by_autograd(self, samples: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        values = zip(self.values(samples), weights, strict=True)
        return torch.stack([(value * by).to(samples[0].device) for value, by in values]).sum()

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether the layer has two maps or more."""
        groups, filters = bank.filters.shape[:2]
        return groups * filters > 1


class _InClosedForm(torch.autograd.Function):
    """Weighted penalties of layers."""

    @staticmethod
    def forward(
        ctx: Any, penalty: ActivationPenalty, weights: Sequence[float], *samples: Tensor
    ) -> Tensor:
        total, ctx.gradients = penalty.total_and_gradients(samples, weights)
        ctx.penalty, ctx.weights = penalty, weights
        ctx.save_for_backward(*samples)
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        samples = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            total = ctx.penalty._total_by_autograd(samples, ctx.weights)
            gradients = torch.autograd.grad(total, samples, create_graph=True)
            return None, None, *(one * factor.to(one) for one in gradients)
        return None, None, *ctx.gradients(factor)


def _stack(alike: Sequence[Tensor]) -> Tensor:
    """Put samples (S, M) of one kind together: (L, S, M), in float32 at the least."""
    stacked_LMS = torch.stack([samples_SM.mT for samples_SM in alike])  # a map in a row, as read
    return at_least_float32(stacked_LMS).mT
