"""Similarities of layers as differentiable values, with the gradient in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.backends.dispatch import add_gradients_
from convsim.kernels import KernelBank
from convsim.similarity import Options, bank_similarity


def similarities(banks: Sequence[KernelBank], options: Options) -> list[Tensor]:
    """Compute each layer's similarity, differentiable, its gradient in closed form.

    The gradient is computed together with the value and kept until the backward pass, in as much
    memory as the filters take; `add_gradients_` needs none. Second derivatives use autograd. So
    does everything under torch.func's transforms, which can follow only torch's own operations.
    """
    if torch._C._are_functorch_transforms_active():
        return [bank_similarity(bank, options) for bank in banks]
    if not any(bank.filters.requires_grad for bank in banks) or not torch.is_grad_enabled():
        return add_gradients_(banks, [None] * len(banks), 1.0, options)
    outputs: Any = _Similarities.apply(  # type: ignore[no-untyped-call]
        options, banks, *(bank.filters for bank in banks)
    )
    return list(outputs[: len(banks)])


class _Similarities(torch.autograd.Function):
    """Similarities of layers, with their gradients as further outputs for the backward pass."""

    @staticmethod
    def forward(options: Options, banks: Sequence[KernelBank], *filters: Tensor) -> Any:
        plain = [bank.with_filters(own.detach()) for bank, own in zip(banks, filters, strict=True)]
        gradients = [torch.zeros_like(bank.filters) for bank in plain]
        values = add_gradients_(plain, gradients, 1.0, options)
        return *values, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.options, ctx.banks, *filters = inputs
        gradients = output[len(filters) :]
        ctx.mark_non_differentiable(*gradients)
        ctx.save_for_backward(*filters, *gradients)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        count = len(ctx.banks)
        filters, gradients = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradients = [
                _differentiable_gradient(bank.with_filters(own), ctx.options) if needed else None
                for bank, own, needed in zip(
                    ctx.banks, filters, ctx.needs_input_grad[2:], strict=True
                )
            ]
        pairs = zip(gradients, upstream[:count], strict=True)
        return None, None, *(None if own is None else own * by for own, by in pairs)


def _differentiable_gradient(bank: KernelBank, options: Options) -> Tensor:
    value = bank_similarity(bank, options)
    (gradient,) = torch.autograd.grad(value, bank.filters, create_graph=True)
    return gradient
