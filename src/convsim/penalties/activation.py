"""What a penalty on feature maps offers: a value of sampled maps, and that value's gradient.

Layers of one shape are taken together. Shape suffixes: L layers, S samples, M maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convsim.backends.problem import places_of, together
from convsim.caching import tensors_are_real
from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, check_reduction
from convsim.precision import at_least_float32, full_precision


class Weighted(NamedTuple):
    """Layers' penalties put together, with the gradient.

    Attributes:
        total: Sum of weight · penalty.
        places: For each tensor of gradients, of which layers it is.
        gradients: Of the total: (L, S, M).
    """

    total: Tensor
    places: list[list[int]]
    gradients: list[Tensor]


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

    def weighted(self, samples: Sequence[Tensor], weights: Sequence[float]) -> Weighted:
        """Compute `total` with its gradient, detached.

        All in few operations: their number is what costs on a GPU.
        """
        kinds = [(x.shape, x.dtype, x.device, by) for x, by in zip(samples, weights, strict=True)]
        places = list(places_of(kinds).values())
        values: dict[float, list[Tensor]] = {}
        gradients = []
        for alike in places:
            samples_LSM, by = _stack([samples[i] for i in alike]), weights[alike[0]]
            with full_precision(samples_LSM):
                value_L, gradient_LSM = self.value_and_gradient(samples_LSM)
            values.setdefault(by, []).append(value_L.to(samples[0].device))
            gradients.append(gradient_LSM * by)
        totals = [torch.cat(own).sum() * by for by, own in values.items()]
        total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
        return Weighted(total, places, gradients)

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
        total, ctx.places, gradients = penalty.weighted(samples, weights)
        ctx.penalty, ctx.weights = penalty, weights
        ctx.save_for_backward(*samples, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        count = len(ctx.weights)
        samples, gradients = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if torch.is_grad_enabled():  # create_graph=True
            return None, None, *_differentiable(ctx.penalty, ctx.weights, samples, factor)
        found: dict[int, Tensor] = {}
        for alike, gradient_LSM in zip(ctx.places, gradients, strict=True):
            own_LSM = gradient_LSM * factor.to(gradient_LSM.device)
            found |= dict(zip(alike, own_LSM.to(samples[alike[0]].dtype).unbind(), strict=True))
        return None, None, *(found[i] for i in range(count))


def _differentiable(
    penalty: ActivationPenalty, weights: Sequence[float], samples: Sequence[Tensor], factor: Tensor
) -> list[Tensor | None]:
    """Compute factor · gradient of each layer's samples by autograd, to be differentiated again."""
    # As views: a sample that is there twice has two gradients, and none goes on to earlier layers.
    own = [samples_SM.view_as(samples_SM) for samples_SM in samples]
    total = penalty._total_by_autograd(own, weights)
    wanted = [one for one in own if one.requires_grad]
    found = iter(torch.autograd.grad(total, wanted, factor, create_graph=True))
    return [next(found) if one.requires_grad else None for one in own]


def _stack(alike: Sequence[Tensor]) -> Tensor:
    """Put samples (S, M) of one kind together: (L, S, M), in float32 at the least."""
    stacked_LMS = torch.stack([samples_SM.mT for samples_SM in alike])  # a map in a row, as read
    return at_least_float32(stacked_LMS).mT
