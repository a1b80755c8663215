"""Which backend takes which layer. Under torch.compile all of this is one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.backends import compiled, eager, fused, sharded
from convsim.backends.library import chosen_backend
from convsim.backends.problem import Backend, Job, together
from convsim.caching import tensors_are_real
from convsim.kernels import KernelBank
from convsim.similarity import Options

_BACKENDS: dict[str, Backend] = {"compiled": compiled, "fused": fused, "eager": eager}
_FASTEST: dict[str, Backend] = {"cpu": compiled, "cuda": fused}  # by kind of device


def add_gradients_(
    banks: Sequence[KernelBank],
    gradients: Sequence[Tensor | None],
    factor: float,
    options: Options,
) -> list[Tensor]:
    """Add factor · gradient of each layer's similarity to its tensor in `gradients`, in place.

    Args:
        banks: The layers.
        gradients: For each layer, (G, M, C, k) of its filters' dtype, of any strides; None to
            compute the value alone.
        factor: What gradients are multiplied by.
        options: The form of similarity.

    Returns:
        For each layer, its similarity, without the factor.
    """
    jobs = [Job(*job) for job in zip(banks, gradients, strict=True)]
    if tensors_are_real():
        return _add_gradients_(jobs, factor, options)
    if any(bank.share is not None for bank in banks):
        apart: Any = torch.compiler.disable(_add_gradients_)
        return list(apart(jobs, factor, options))
    values: Tensor = _operator(  # one node of the graph, whatever the backend
        [bank.filters for bank in banks],
        [gradient for gradient in gradients if gradient is not None],
        [gradient is not None for gradient in gradients],
        [number for bank in banks for number in (*bank.stride, *bank.dilation)],
        [bank.transposed for bank in banks],
        factor,
        [options.pairs, options.channels, options.scale, options.reduction],
    )
    return [value.to(bank.filters) for value, bank in zip(values.unbind(), banks, strict=True)]


@torch.library.custom_op(
    "convsim::add_similarity_gradients_",
    mutates_args={"gradients"},
    schema="(Tensor[] filters, Tensor(a!)[] gradients, bool[] wanted, int[] steps, "
    "bool[] transposed, float factor, str[] options) -> Tensor",
)
def _operator(
    filters: list[Tensor],
    gradients: list[Tensor],
    wanted: list[bool],
    steps: list[int],
    transposed: list[bool],
    factor: float,
    options: list[str],
) -> Tensor:
    number, gradient = iter(steps), iter(gradients)
    jobs = []
    for own, flag, want in zip(filters, transposed, wanted, strict=True):
        stride, dilation = (tuple(next(number) for _ in own.shape[3:]) for _ in range(2))
        bank = KernelBank(own, stride, dilation, flag)
        jobs.append(Job(bank, next(gradient) if want else None))
    values = _add_gradients_(jobs, factor, Options(*options))  # type: ignore[arg-type]
    return torch.stack([value.to(filters[0].device, torch.float64) for value in values])


@_operator.register_fake
def _(filters: list[Tensor], *_: Any) -> Tensor:
    return filters[0].new_empty(len(filters), dtype=torch.float64)


@torch.no_grad()
def _add_gradients_(jobs: Sequence[Job], factor: float, options: Options) -> list[Tensor]:
    def alike(job: Job) -> tuple[Any, ...]:
        filters = job.bank.filters
        backend = next(one for one in _candidates(filters.device) if one.serves(job, options))
        return backend, filters.dtype, filters.device

    return together(jobs, alike, lambda key, mine: key[0].add_gradients_(mine, factor, options))


def _candidates(device: torch.device) -> list[Backend]:
    """List the backends to try; the first that serves a layer takes it."""
    name = chosen_backend()
    first = _FASTEST.get(device.type, eager) if name is None else _BACKENDS[name]
    return [sharded, first, eager]
