"""Convolutional Similarity of filters that lie on several processes.

A filter depends on its partners only through N_i, the sum of their autocorrelations. So each rank
sums the autocorrelations of its own filters, the ranks add up these sums, and each goes on with its
own filters. X·L numbers a layer travel (X = C channels if matched, else 1; L lags), however many
filters there are. What the other ranks hold is the total less the rank's own sum, in float64,
because it may be small beside both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsim.backends import eager
from convsim.backends.problem import Job, together
from convsim.kernels.sharding import Share
from convsim.precision import full_precision
from convsim.similarity import Options


def serves(job: Job, options: Options) -> bool:
    """Tell whether a layer's filters lie on several processes: no other backend takes those."""
    return job.bank.share is not None


def add_gradients_(jobs: Sequence[Job], factor: float, options: Options) -> list[Tensor]:
    """Add factor · gradient of each bank's similarity; return the similarities.

    All ranks must call it with the same layers; all return the same similarities.
    """
    with torch.no_grad(), full_precision(jobs[0].bank.filters):
        shares = [job.bank.share for job in jobs if job.bank.share is not None]
        own = [eager.sum_autocorrelations(job.bank, options) for job in jobs]
        others = [torch.zeros_like(part) for part in own]
        split = [i for i, share in enumerate(shares) if share.splits_a_group]
        for i, total in zip(split, _total(shares, own, split), strict=True):
            others[i] = total - own[i]
        values = [
            eager.add_gradient_(job, factor, options, further).double()
            for job, further in zip(jobs, others, strict=True)
        ]
        totals = _total(shares, values, range(len(jobs)))
    return [value.to(job.bank.filters) for value, job in zip(totals, jobs, strict=True)]


def _total(shares: Sequence[Share], parts: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
    """Add up the chosen parts over their ranks, in one message for each set of ranks."""

    def add_up(process_group: Any, mine: list[int]) -> list[Tensor]:
        total = torch.cat([parts[i].flatten() for i in mine])
        torch.distributed.all_reduce(total, group=process_group)
        pieces = total.split([parts[i].numel() for i in mine])
        return [piece.view_as(parts[i]) for i, piece in zip(mine, pieces, strict=True)]

    return together(chosen, lambda i: shares[i].process_group, add_up)
