"""Convolutional Similarity and its gradient, by the fastest means at hand.

One question (`problem`), several answers, each checked against `convsim.similarity`: ``compiled``
(C++, on a CPU with a compiler), ``fused`` (Triton, on an NVIDIA GPU, crossed form), ``eager``
(torch alone, anywhere), and ``sharded`` for filters that lie on several processes. The environment
variable ``CONVSIM_BACKEND=eager`` keeps to torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from convsim.backends import compiled, eager, fused, sharded
from convsim.backends.problem import Options
from convsim.caching import tensors_are_real
from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.similarity import bank_similarity

_BACKENDS = {
    "compiled": compiled,
    "fused": fused,
    "eager": eager,
}  # the first that serves a layer takes it


def similarities(banks: Sequence[KernelBank], options: Options) -> list[Tensor]:
    """Compute each layer's similarity, differentiable, its gradient in closed form.

    The gradient is computed with the value and kept until the backward pass: as much memory as the
    filters take, where `add_gradients_` needs none. A second derivative goes by autograd, and so
    does all of it under torch.func's transforms, which see through torch's own operations only.
    """
    if torch._C._are_functorch_transforms_active():
        return [bank_similarity(bank, *options) for bank in banks]
    if not any(bank.filters.requires_grad for bank in banks) or not torch.is_grad_enabled():
        return add_gradients_(banks, [None] * len(banks), [1.0] * len(banks), options)
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
        values = add_gradients_(plain, gradients, [1.0] * len(plain), options)
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
    value = bank_similarity(bank, *options)
    (gradient,) = torch.autograd.grad(value, bank.filters, create_graph=True)
    return gradient


def add_gradients_(
    banks: Sequence[KernelBank],
    gradients: Sequence[Tensor | None],
    factors: Sequence[float],
    options: Options,
) -> list[Tensor]:
    """Add factor · gradient of each layer's similarity to its tensor in `gradients`, in place.

    Args:
        banks: The layers.
        gradients: For each layer, (G, M, C, k) of its filters' dtype, of any strides; None to
            compute the value alone.
        factors: For each layer, what its gradient is multiplied by.
        options: The form of similarity.

    Returns:
        For each layer, its similarity, without the factor.
    """
    if tensors_are_real():
        return _add_gradients_(banks, gradients, factors, options)
    if any(bank.share is not None for bank in banks):
        apart: Any = torch.compiler.disable(_add_gradients_)
        return list(apart(banks, gradients, factors, options))
    values: Tensor = _operator(  # one node of the graph, whatever the backend
        [bank.filters for bank in banks],
        [gradient for gradient in gradients if gradient is not None],
        [gradient is not None for gradient in gradients],
        [number for bank in banks for number in (*bank.stride, *bank.dilation)],
        [bank.transposed for bank in banks],
        list(factors),
        list(options),
    )
    return [value.to(bank.filters) for value, bank in zip(values.unbind(), banks, strict=True)]


@torch.library.custom_op(
    "convsim::add_similarity_gradients_",
    mutates_args={"gradients"},
    schema="(Tensor[] filters, Tensor(a!)[] gradients, bool[] wanted, int[] steps, "
    "bool[] transposed, float[] factors, str[] options) -> Tensor",
)
def _operator(
    filters: list[Tensor],
    gradients: list[Tensor],
    wanted: list[bool],
    steps: list[int],
    transposed: list[bool],
    factors: list[float],
    options: list[str],
) -> Tensor:
    number, gradient = iter(steps), iter(gradients)
    banks = []
    for own, flag in zip(filters, transposed, strict=True):
        stride, dilation = (tuple(next(number) for _ in own.shape[3:]) for _ in range(2))
        banks.append(KernelBank(own, stride, dilation, flag))
    targets = [next(gradient) if want else None for want in wanted]
    values = _add_gradients_(banks, targets, factors, Options(*options))  # type: ignore[arg-type]
    return torch.stack([value.to(filters[0].device, torch.float64) for value in values])


@_operator.register_fake
def _(filters: list[Tensor], *_: Any) -> Tensor:
    return filters[0].new_empty(len(filters), dtype=torch.float64)


@torch.no_grad()
def _add_gradients_(
    banks: Sequence[KernelBank],
    gradients: Sequence[Tensor | None],
    factors: Sequence[float],
    options: Options,
) -> list[Tensor]:
    jobs: dict[Any, list[int]] = {}
    chosen = _chosen()
    for i, (bank, gradient) in enumerate(zip(banks, gradients, strict=True)):
        backend = next(one for one in chosen if one.serves(bank, gradient, options))
        jobs.setdefault((backend, bank.filters.dtype, bank.filters.device), []).append(i)
    values: dict[int, Tensor] = {}
    for (backend, *_), mine in jobs.items():
        columns = ([column[i] for i in mine] for column in (banks, gradients, factors))
        values.update(zip(mine, backend.add_gradients_(*columns, options), strict=True))
    return [values[i] for i in range(len(banks))]


def _chosen() -> list[ModuleType]:
    name = os.environ.get("CONVSIM_BACKEND")
    if name is None:
        return [sharded, *_BACKENDS.values()]
    if name not in _BACKENDS:
        raise ConvsimError(
            f"CONVSIM_BACKEND must be one of {', '.join(map(repr, _BACKENDS))}; got {name!r}."
        )
    return [sharded, _BACKENDS[name], eager]
