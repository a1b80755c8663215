"""What a penalty on feature maps offers: a value of sampled maps, and that value's gradient.

Layers of one shape are taken together. Shape suffixes: L layers, S samples, M maps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.caching import tensors_are_real
from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, check_reduction
from convsim.precision import at_least_float32, full_precision


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
        """Compute the penalty of each layer's samples (S, M), with `value_and_gradient`'s gradient.

        In float32 at the least.
        """
        found: dict[int, Tensor] = {}
        for alike in _by_shape(samples):
            samples_LSM = at_least_float32(torch.stack([samples[i] for i in alike]))
            with full_precision(samples_LSM):
                if tensors_are_real():
                    values = _InClosedForm.apply(samples_LSM, self)  # type: ignore[no-untyped-call]
                else:
                    values = self.value(samples_LSM)
            found |= dict(zip(alike, values.unbind(), strict=True))
        return [found[i] for i in range(len(samples))]

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether the layer has two maps or more."""
        groups, filters = bank.filters.shape[:2]
        return groups * filters > 1


class _InClosedForm(torch.autograd.Function):
    """A penalty with the gradient that it knows itself, and autograd's for a second derivative."""

    @staticmethod
    def forward(ctx: Any, samples_LSM: Tensor, penalty: ActivationPenalty) -> Tensor:
        ctx.penalty = penalty
        if not ctx.needs_input_grad[0]:
            return penalty.value(samples_LSM)
        value, gradient_LSM = penalty.value_and_gradient(samples_LSM)
        ctx.save_for_backward(samples_LSM, gradient_LSM)
        return value

    @staticmethod
    def backward(ctx: Any, factor_L: Tensor) -> tuple[Tensor, None]:
        samples_LSM, gradient_LSM = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            with full_precision(samples_LSM):
                value = ctx.penalty.value(samples_LSM)
            (gradient_LSM,) = torch.autograd.grad(value.sum(), samples_LSM, create_graph=True)
        return gradient_LSM * factor_L[:, None, None], None


def _by_shape(samples: Sequence[Tensor]) -> list[list[int]]:
    """Put together the places of tensors of one shape, dtype and device."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, one in enumerate(samples):
        alike.setdefault((one.shape, one.dtype, one.device), []).append(i)
    return list(alike.values())
