"""Crossed Convolutional Similarity on an NVIDIA GPU: three Triton launches for each kernel shape.

Layers of one kernel shape go together, through a table of their filters' layout, sent to the device
once for each stream, and one of each layer's addresses and factors, sent from pinned memory when
one of them changes. Nothing waits for the device, and a CUDA graph can capture it.

`autocorrelate` reads every filter once and leaves its autocorrelation, `sum_blocks` adds these up
over blocks of filters, and `add_gradient` sums a filter's partners (the other blocks, and the
others of its own: nothing is subtracted that could cancel), reads the filter again and writes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

import torch
from torch import Tensor

from convsim.backends.problem import Options, half_classes, merges_taps
from convsim.kernels import KernelBank
from convsim.similarity import pair_weight

logger = logging.getLogger(__name__)
_MAX_TAPS = 64  # taps² products are kept in registers
_BLOCK = 32  # filters whose autocorrelations are added up first


def serves(bank: KernelBank, gradient: Tensor | None, options: Options) -> bool:
    """Tell whether this backend can take a layer."""
    asked_for = os.environ.get("CONVSIM_BACKEND") == "fused"  # in Triton's interpreter
    return (
        (bank.filters.is_cuda or asked_for)
        and _triton_works(bank.filters.device)
        and options.channels == "crossed"
        and bank.filters.dtype == torch.float32
        and bank.filters[0, 0, 0].numel() <= _MAX_TAPS
        and merges_taps(bank.filters)
        and (gradient is None or gradient.stride() == bank.filters.stride())
    )


@cache
def _triton_works(device: torch.device) -> bool:
    """Whether Triton is there and can compile for a device; a kernel tells."""
    if find_spec("triton") is None:
        return False
    try:
        from convsim.backends import fused_kernels as kernels  # noqa: PLC0415 - Triton is optional

        ones = torch.ones(1, 16, device=device)
        blocks, total = torch.tensor([(0, 1)]).to(device), torch.empty(1, 16).double().to(device)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernels.sum_blocks[(1,)](ones, blocks, total, H=16, B=_BLOCK)
    except Exception as error:  # whatever it is, torch operations serve
        logger.warning("penalties take the eager backend, for Triton failed: %s", error)
        return False
    return True


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
    device = banks[0].filters.device
    for members in groups.values():
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
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
    shapes = tuple((bank.filters.shape[:3], bank.filters.flatten(3).stride()) for bank in banks)
    table, blocks, layer_of_row = _kept(_table, shapes, device)
    addresses = tuple(
        (bank.filters.data_ptr(), 0 if gradient is None else gradient.data_ptr(), w, 2 * w * f)
        for bank, gradient, w, f in zip(banks, gradients, weights, factors, strict=True)
    )
    (layers,) = _kept(_layers, addresses, device)
    taps = banks[0].filters[0, 0, 0].numel()
    n, h = max(16, _power_of_2(taps)), max(16, _power_of_2(classes.count))
    geometry = (banks[0].kernel, banks[0].stride, banks[0].dilation, banks[0].transposed)
    pair_class, multiplicity = _kept(_classes, (*geometry, n, h), device)
    rows = len(layer_of_row)
    a = torch.zeros(rows, h, device=device)
    partial = torch.empty(len(blocks), h, dtype=torch.float64, device=device)
    norm, peaks = torch.empty(2, rows, device=device).unbind()
    along = torch.empty(rows, dtype=torch.float64, device=device)
    unit, channels = options.scale == "unit", 32
    kernels.autocorrelate[(rows,)](
        table, layers, pair_class, a, norm, peaks, taps, classes.count,
        UNIT=unit, N=n, H=h, C=channels,
    )  # fmt: skip
    kernels.sum_blocks[(len(blocks),)](a, blocks, partial, H=h, B=_BLOCK)
    kernels.add_gradient[(rows,)](
        table, layers, pair_class, multiplicity, a, partial, norm, peaks, along,
        taps, classes.count,
        UNIT=unit, ADJACENT=options.pairs == "adjacent", N=n, H=h, C=channels, B=_BLOCK,
    )  # fmt: skip
    values = torch.zeros(len(banks), dtype=torch.float64, device=device)
    values.index_add_(0, layer_of_row, along)
    return (0.5 * layers[:, 2].view(torch.float64) * values).float()


_Key = tuple[Any, ...]
_KEPT: dict[_Key, tuple[Tensor, ...]] = {}
_CAPTURED: list[tuple[Tensor, ...]] = []  # what CUDA graphs read, or copy from, at every replay


def _kept(
    make: Callable[..., tuple[Tensor, ...]], described: _Key, device: torch.device
) -> tuple[Tensor, ...]:
    """Make tables once and send them to the device, from pinned memory without waiting for it.

    Each stream has its own: another could read a copy before it has arrived, or after it is gone.
    A graph that is captured may be replayed at any time: what it reads is never let go, and what it
    copies is not shown to others, for it is there only after a replay.
    """
    key = (make, described, device, _stream(device))
    found = _KEPT.get(key)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if found is None:
        found = sources = make(described)
        if device.type == "cuda":
            sources = tuple(table.pin_memory() for table in sources)
            found = tuple(table.to(device, non_blocking=True) for table in sources)
        if capturing:
            _CAPTURED.append(sources)
        else:
            _KEPT[key] = found
            if len(_KEPT) > 256:
                del _KEPT[next(iter(_KEPT))]
    if capturing:
        _CAPTURED.append(found)
    return found


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _table(described: _Key) -> tuple[Tensor, ...]:
    """List each filter's place, layout and group, the blocks of filters, and each one's layer."""
    rows: list[Tensor] = []
    blocks: list[tuple[int, int]] = []
    counts: list[int] = []
    total = 0
    for layer, ((groups, members, channels), stride) in enumerate(described):
        for group in range(groups):
            first = total + group * members
            own = torch.empty(members, 8, dtype=torch.int64)
            own[:, 0] = layer
            own[:, 1] = 4 * (group * stride[0] + torch.arange(members) * stride[1])
            own[:, 2:] = torch.tensor(
                [channels, stride[2], stride[3], first, first + members, len(blocks)]
            )
            rows.append(own)
            blocks += [(b, first + members) for b in range(first, first + members, _BLOCK)]
        counts.append(groups * members)
        total += counts[-1]
    return (
        torch.cat(rows),
        torch.tensor([(b, min(b + _BLOCK, last)) for b, last in blocks], device="cpu"),
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
    )


def _layers(described: _Key) -> tuple[Tensor, ...]:
    """Spell out each layer's filters, gradient, weight and factor, the numbers as their bits."""
    addresses = torch.tensor([row[:2] for row in described], dtype=torch.int64)
    numbers = torch.tensor([row[2:] for row in described], dtype=torch.float64)
    return (torch.cat([addresses, numbers.view(torch.int64)], 1),)


def _classes(described: _Key) -> tuple[Tensor, ...]:
    """Pad the classes of tap pairs to n × n, and their multiplicities to h."""
    *geometry, n, h = described
    classes = half_classes(KernelBank(torch.empty(1, 1, 1, *geometry[0]), *geometry[1:]))
    taps = prod(geometry[0])
    pair_class = torch.full((n, n), classes.count, dtype=torch.int32)
    pair_class[:taps, :taps] = classes.pair_class.reshape(taps, taps)
    multiplicity = torch.zeros(h, dtype=torch.float64)
    multiplicity[: classes.count] = classes.multiplicity
    return pair_class, multiplicity


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
