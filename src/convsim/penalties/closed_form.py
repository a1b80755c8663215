"""Penalties on kernels that know their gradient, as differentiable values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import Penalty


class ClosedFormPenalty(Penalty):
    """A penalty whose `add_gradients_` needs no autograd, and so its values do not."""

    def values(self, banks: Sequence[KernelBank]) -> list[Tensor]:
        """Compute the penalty of each layer, differentiable, its gradient in closed form.

        The gradient is computed together with the value and kept until the backward pass, in as
        much memory as the filters take; `add_gradients_` needs none. Second derivatives use
        autograd. So does everything under torch.func's transforms, which can follow only torch's
        own operations.
        """
        if torch._C._are_functorch_transforms_active():
            return [self.value(bank) for bank in banks]
        if not any(bank.filters.requires_grad for bank in banks) or not torch.is_grad_enabled():
            return self.add_gradients_(banks, [None] * len(banks), 1.0)
        values: Any = _InClosedForm.apply(  # type: ignore[no-untyped-call]
            self, banks, *(bank.filters for bank in banks)
        )
        return list(values)


class _InClosedForm(torch.autograd.Function):
    """Penalties of layers, which keep their gradients for the backward pass."""

    @staticmethod
    def forward(ctx: Any, penalty: Penalty, banks: Sequence[KernelBank], *filters: Tensor) -> Any:
        plain = [bank.with_filters(own.detach()) for bank, own in zip(banks, filters, strict=True)]
        gradients = [torch.zeros_like(bank.filters) for bank in plain]
        values = penalty.add_gradients_(plain, gradients, 1.0)
        ctx.penalty, ctx.banks = penalty, banks
        ctx.save_for_backward(*filters, *gradients)
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        count = len(ctx.banks)
        filters, gradients = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradients = [
                _differentiable_gradient(ctx.penalty, bank.with_filters(own)) if needed else None
                for bank, own, needed in zip(
                    ctx.banks, filters, ctx.needs_input_grad[2:], strict=True
                )
            ]
        pairs = zip(gradients, upstream, strict=True)
        return None, None, *(None if own is None else own * by for own, by in pairs)


def _differentiable_gradient(penalty: Penalty, bank: KernelBank) -> Tensor:
    (gradient,) = torch.autograd.grad(penalty.value(bank), bank.filters, create_graph=True)
    return gradient
