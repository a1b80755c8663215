"""Crossed Convolutional Similarity on an NVIDIA GPU: three Triton launches for each kernel shape.

Layers of one kernel shape go together, through tables of their filters' addresses that are sent to
the device when an address changes, from pinned memory. Nothing waits for the device.

`autocorrelate` reads every filter once and leaves its autocorrelation, `sum_blocks` adds these up
over blocks of filters, and `add_gradient` sums a filter's partners (the other blocks, and the
others of its own: nothing is subtracted that could cancel), reads the filter again and writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from convsim.backends.problem import Options, half_classes
from convsim.kernels import KernelBank
from convsim.similarity import pair_weight

_MAX_TAPS = 64  # taps² products are kept in registers
_BLOCK = 32  # filters whose autocorrelations are added up first


def serves(bank: KernelBank, gradient: Tensor | None, options: Options) -> bool:
    """Tell whether this backend can take a layer."""
    asked_for = os.environ.get("CONVSIM_BACKEND") == "fused"  # in Triton's interpreter
    return (
        (bank.filters.is_cuda or asked_for)
        and _triton_is_installed()
        and options.channels == "crossed"
        and bank.filters.dtype == torch.float32
        and bank.filters[0, 0, 0].numel() <= _MAX_TAPS
        and _one_stride_through_taps(bank.filters)
        and (gradient is None or gradient.stride() == bank.filters.stride())
    )


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


def add_gradients_(
    banks: Sequence[KernelBank],
    gradients: Sequence[Tensor | None],
    factors: Sequence[float],
    options: Options,
) -> list[Tensor]:
    """Add factor · gradient of each bank's similarity to `gradients`; return the similarities."""
    groups: dict[Any, list[int]] = {}
    for i, bank in enumerate(banks):
        key = (bank.kernel, bank.stride, bank.dilation, bank.transposed)
        groups.setdefault(key, []).append(i)
    values: list[Tensor | None] = [None] * len(banks)
    for members in groups.values():
        found = _of_one_shape(
            [banks[i] for i in members],
            [gradients[i] for i in members],
            [factors[i] for i in members],
            options,
        )
        for i, value in zip(members, found.unbind(), strict=True):
            values[i] = value
    return [value for value in values if value is not None]


def _of_one_shape(
    banks: list[KernelBank],
    gradients: list[Tensor | None],
    factors: list[float],
    options: Options,
) -> Tensor:
    from convsim.backends import fused_kernels as kernels  # noqa: PLC0415 - Triton is optional

    device = banks[0].filters.device
    classes = half_classes(banks[0])
    weights = [pair_weight(bank, options.pairs, options.reduction) for bank in banks]
    scales = [2 * w * f for w, f in zip(weights, factors, strict=True)]
    described = tuple(
        (bank.filters.shape[:3], bank.filters.stride(), bank.filters.data_ptr(),
         0 if gradient is None else gradient.data_ptr())
        for bank, gradient in zip(banks, gradients, strict=True)
    )  # fmt: skip
    table, blocks, layer_of_row = _tables(described, device)
    taps = banks[0].filters[0, 0, 0].numel()
    n, h = max(16, _power_of_2(taps)), max(16, _power_of_2(classes.count))
    pair_class, multiplicity = _padded_classes(banks[0], n, h, device)
    rows = len(layer_of_row)
    a = torch.zeros(rows, h, device=device)
    partial = torch.empty(len(blocks), h, dtype=torch.float64, device=device)
    norm, peaks = torch.empty(2, rows, device=device).unbind()
    along = torch.empty(rows, dtype=torch.float64, device=device)
    per_layer = torch.tensor([scales, weights], dtype=torch.float64)
    if device.type == "cuda":
        per_layer = per_layer.pin_memory().to(device, non_blocking=True)
    unit, channels = options.scale == "unit", 32
    kernels.autocorrelate[(rows,)](
        table, pair_class, a, norm, peaks, taps, classes.count,
        UNIT=unit, N=n, H=h, C=channels,
    )  # fmt: skip
    kernels.sum_blocks[(len(blocks),)](a, blocks, partial, H=h, B=_BLOCK)
    kernels.add_gradient[(rows,)](
        table, pair_class, multiplicity, a, partial, norm, peaks, per_layer[0][layer_of_row],
        along, taps, classes.count,
        UNIT=unit, ADJACENT=options.pairs == "adjacent", N=n, H=h, C=channels, B=_BLOCK,
    )  # fmt: skip
    values = torch.zeros(len(banks), dtype=torch.float64, device=device)
    values.index_add_(0, layer_of_row, along)
    return (0.5 * per_layer[1] * values).float()


@lru_cache(maxsize=64)
def _tables(described: tuple[Any, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Spell out each filter's address, layout, group and gradient, and the blocks of filters."""
    rows: list[Tensor] = []
    blocks: list[tuple[int, int]] = []
    counts: list[int] = []
    total = 0
    for (groups, members, channels), stride, filters, gradient in described:
        for group in range(groups):
            first = total + group * members
            offset = 4 * (group * stride[0] + torch.arange(members) * stride[1])
            own = torch.empty(members, 8, dtype=torch.int64)
            own[:, 0] = filters + offset
            own[:, 1:7] = torch.tensor(
                [channels, stride[2], stride[-1], first, first + members, len(blocks)]
            )
            own[:, 7] = gradient + offset if gradient else 0
            rows.append(own)
            blocks += [(b, first + members) for b in range(first, first + members, _BLOCK)]
        counts.append(groups * members)
        total += counts[-1]
    tables = [
        torch.cat(rows),
        torch.tensor([(b, min(b + _BLOCK, last)) for b, last in blocks]),
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
    ]
    if device.type == "cuda":
        tables = [table.pin_memory().to(device, non_blocking=True) for table in tables]
    table, block, layer_of_row = tables
    return table, block, layer_of_row


def _padded_classes(
    bank: KernelBank, n: int, h: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    return _padded(bank.kernel, bank.stride, bank.dilation, bank.transposed, n, h, device)


@lru_cache(maxsize=64)
def _padded(
    kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], transposed: bool,
    n: int, h: int, device: torch.device,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    bank = KernelBank(torch.empty(1, 1, 1, *kernel), stride, dilation, transposed)
    classes, taps = half_classes(bank), bank.filters.numel()
    pair_class = torch.full((n, n), classes.count, dtype=torch.int32)
    pair_class[:taps, :taps] = classes.pair_class.reshape(taps, taps)
    multiplicity = torch.zeros(h, dtype=torch.float64)
    multiplicity[: classes.count] = classes.multiplicity
    return pair_class.to(device), multiplicity.to(device)


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _one_stride_through_taps(filters: Tensor) -> bool:
    """Whether the taps lie at multiples of the last axis' stride."""
    step = filters.stride(-1)
    for size, own in zip(reversed(filters.shape[3:]), reversed(filters.stride()[3:]), strict=True):
        if size > 1 and own != step:
            return False
        step *= size
    return True
