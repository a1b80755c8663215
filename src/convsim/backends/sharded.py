"""Convolutional Similarity of filters that lie on several processes.

A filter meets its partners in the sum N_i of their autocorrelations alone. So every rank sums its
own filters', the ranks add these sums up, and each goes on with its own filters: X·L numbers a
layer travel (X = C channels if matched, else 1; L lags), however many filters there are. What the
other ranks hold is the sum less the rank's own, in float64, for it may be small beside both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.backends import eager
from convsim.backends.problem import Options
from convsim.kernels import KernelBank
from convsim.precision import full_precision


def serves(bank: KernelBank, gradient: Tensor | None, options: Options) -> bool:
    """Tell whether a layer is one of those, which no other backend can take."""
    return bank.share is not None


def add_gradients_(
    banks: Sequence[KernelBank],
    gradients: Sequence[Tensor | None],
    factors: Sequence[float],
    options: Options,
) -> list[Tensor]:
    """Add factor · gradient of each bank's similarity to `gradients`; return the similarities.

    All ranks call it with the same layers; those return the same similarities.
    """
    with torch.no_grad(), full_precision(banks[0].filters):
        own = [eager.sum_autocorrelations(bank, options) for bank in banks]
        others = [torch.zeros_like(part) for part in own]
        meeting = [i for i, bank in enumerate(banks) if bank.share is not None and bank.share.meets]
        for i, total in zip(meeting, _total(banks, own, meeting), strict=True):
            others[i] = total - own[i]
        values = [
            eager.add_gradient_(bank, gradient, factor, options, further).double()
            for bank, gradient, factor, further in zip(
                banks, gradients, factors, others, strict=True
            )
        ]
        totals = _total(banks, values, range(len(banks)))
    return [value.to(bank.filters) for value, bank in zip(totals, banks, strict=True)]


def _total(
    banks: Sequence[KernelBank], parts: Sequence[Tensor], chosen: Sequence[int]
) -> list[Tensor]:
    """Add up what the ranks have for the chosen banks, in one message where they are the same."""
    by_ranks: dict[Any, list[int]] = {}
    for i in chosen:
        share = banks[i].share
        assert share is not None
        by_ranks.setdefault(share.ranks, []).append(i)
    found: dict[int, Tensor] = {}
    for ranks, mine in by_ranks.items():
        total = torch.cat([parts[i].flatten() for i in mine])
        torch.distributed.all_reduce(total, group=ranks)
        pieces = total.split([parts[i].numel() for i in mine])
        found.update((i, piece.view_as(parts[i])) for i, piece in zip(mine, pieces, strict=True))
    return [found[i] for i in chosen]
