"""Crossed Convolutional Similarity on an NVIDIA GPU: three Triton launches for each kernel shape.

Layers of one kernel shape are launched together. Two tables describe them: the layout of their
filters, sent to the device once for each stream, and each layer's addresses and factors, sent from
pinned memory when one of them changes. Nothing waits for the device, so a CUDA graph can capture
all of it.

`autocorrelate` reads every filter once and leaves its autocorrelation, `sum_blocks` adds these up
over blocks of filters, and `add_gradient` sums a filter's partners, reads the filter again and
writes. The partners are the other blocks and the other filters of its own block, so nothing is
subtracted that could cancel.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from convsim.backends.problem import Job, half_classes, merges_taps, together
from convsim.caching import kept_on_stream
from convsim.kernels import Geometry
from convsim.similarity import Options, pair_weight

logger = logging.getLogger(__name__)
_MAX_TAPS = 64  # taps² products are kept in registers
_BLOCK = 32  # filters whose autocorrelations are added up first
_CHANNELS = 32  # of a filter that are read at once


def serves(job: Job, options: Options) -> bool:
    """Tell whether this backend can take a layer."""
    filters, gradient = job.bank.filters, job.gradient
    return (
        options.channels == "crossed"
        and filters.dtype == torch.float32
        and job.bank.geometry.taps <= _MAX_TAPS
        and merges_taps(filters)
        and (gradient is None or gradient.stride() == filters.stride())
        and _triton_works(filters.device)
    )


@cache
def _triton_works(device: torch.device) -> bool:
    """Tell whether Triton is installed and can compile for a device, by running a kernel."""
    if find_spec("triton") is None:
        return False
    try:
        from convsim.backends import fused_kernels as kernels  # noqa: PLC0415 - Triton is optional

        ones = torch.ones(1, 16, device=device)
        blocks, total = torch.tensor([(0, 1)]).to(device), torch.empty(1, 16).double().to(device)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernels.sum_blocks[(1,)](ones, blocks, total, H=16, B=_BLOCK)
    except Exception as error:  # whatever it is, torch's own operations do instead
        logger.warning("penalties use the eager backend, because Triton failed: %s", error)
        return False
    return True


def add_gradients_(jobs: Sequence[Job], factor: float, options: Options) -> list[Tensor]:
    """Add factor · gradient of each bank's similarity; return the similarities."""
    device = jobs[0].bank.filters.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return together(
            jobs,
            lambda job: job.bank.geometry,
            lambda geometry, mine: _of_one_geometry(geometry, mine, factor, options).unbind(),
        )


def _of_one_geometry(
    geometry: Geometry, jobs: list[Job], factor: float, options: Options
) -> Tensor:
    from convsim.backends import fused_kernels as kernels  # noqa: PLC0415 - Triton is optional

    device = jobs[0].bank.filters.device
    table, blocks, layer_of_row = kept_on_stream(_table, _layouts(jobs), device)
    (layers,) = kept_on_stream(_layers, _addresses(jobs, factor, options), device)
    taps, classes = geometry.taps, half_classes(geometry).count
    n, h = max(16, _power_of_2(taps)), max(16, _power_of_2(classes))
    pair_class, multiplicity = kept_on_stream(_classes, (geometry, n, h), device)
    rows = len(layer_of_row)
    a = torch.zeros(rows, h, device=device)
    partial = torch.empty(len(blocks), h, dtype=torch.float64, device=device)
    norm, peaks = torch.empty(2, rows, device=device).unbind()
    along = torch.empty(rows, dtype=torch.float64, device=device)
    unit = options.scale == "unit"
    kernels.autocorrelate[(rows,)](
        table, layers, pair_class, a, norm, peaks, taps, classes,
        UNIT=unit, N=n, H=h, C=_CHANNELS,
    )  # fmt: skip
    kernels.sum_blocks[(len(blocks),)](a, blocks, partial, H=h, B=_BLOCK)
    kernels.add_gradient[(rows,)](
        table, layers, pair_class, multiplicity, a, partial, norm, peaks, along, taps, classes,
        UNIT=unit, ADJACENT=options.pairs == "adjacent", N=n, H=h, C=_CHANNELS, B=_BLOCK,
    )  # fmt: skip
    values = torch.zeros(len(jobs), dtype=torch.float64, device=device)
    values.index_add_(0, layer_of_row, along)
    return (0.5 * layers[:, 2].view(torch.float64) * values).float()


_Key = tuple[Any, ...]


def _layouts(jobs: list[Job]) -> _Key:
    return tuple((bank.filters.shape[:3], bank.filters.flatten(3).stride()) for bank, _ in jobs)


def _addresses(jobs: list[Job], factor: float, options: Options) -> _Key:
    weights = [pair_weight(bank, options) for bank, _ in jobs]
    return tuple(
        (
            bank.filters.data_ptr(),
            0 if gradient is None else gradient.data_ptr(),
            weight,
            2 * weight * factor,
        )
        for (bank, gradient), weight in zip(jobs, weights, strict=True)
    )


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
    geometry, n, h = described
    classes, taps = half_classes(geometry), geometry.taps
    pair_class = torch.full((n, n), classes.count, dtype=torch.int32)
    pair_class[:taps, :taps] = classes.pair_class.reshape(taps, taps)
    multiplicity = torch.zeros(h, dtype=torch.float64)
    multiplicity[: classes.count] = classes.multiplicity
    return pair_class, multiplicity


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
