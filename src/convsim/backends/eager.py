"""Convolutional Similarity by torch operations alone: on any device.

With a_i the autocorrelation of filter W_i and N_i the sum of its partners', CS = ½ Σ ⟨a_i, N_i⟩ and
∂CS/∂a_i = N_i. Hence ∂CS/∂W_i = 2·N_i ⋆ W_i at the kernel's own taps, and a unit filter W = K/‖K‖
passes (g − W⟨g, W⟩)/‖K‖ on, where ⟨g, W⟩ = 2⟨a_i, N_i⟩.

Two passes over the weights, one slice of filters at a time. The matched form never mixes channels,
so it also takes one slice of channels at a time. Intermediates stay small whatever the layer's
size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convsim.backends.fourier import Fourier
from convsim.backends.problem import Job
from convsim.kernels import KernelBank
from convsim.precision import full_precision
from convsim.similarity import Options
from convsim.similarity.convolutional import (
    expand_classes,
    pair_weight,
    pool_by_class,
    scaled_filters,
    sum_partners,
    tap_pair_classes,
    tap_products,
)

_FOURIER_FROM = {"crossed": 256, "matched": 64}  # taps; benchmarks/large_kernels.py
_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 22}  # an intermediate: a cache's worth; few launches


class Gram:
    """Autocorrelations by products of every two taps, pooled by lag: n² multiplications."""

    def __init__(self, bank: KernelBank, options: Options) -> None:
        self.bank, self.channels = bank, options.channels
        self.lags = tap_pair_classes(bank.geometry)[1]

    def autocorrelate(self, w_GMCn: Tensor) -> Tensor:
        """Compute the autocorrelation of every filter, or channel if matched: (G, M, X, L)."""
        return pool_by_class(tap_products(w_GMCn, self.channels), self.bank)

    def convolve(self, w_GMCn: Tensor, a_GMXL: Tensor) -> Tensor:
        """Convolve filters with autocorrelations, at the kernel's own taps: (G, M, C, n)."""
        t_GMXnn = expand_classes(a_GMXL, self.bank)
        if self.channels == "matched":
            return (w_GMCn.unsqueeze(-2) @ t_GMXnn).squeeze(-2)
        return w_GMCn @ t_GMXnn.squeeze(2)


def serves(job: Job, options: Options) -> bool:
    """Tell whether this backend can take a layer: any."""
    return True


def add_gradients_(jobs: Sequence[Job], factor: float, options: Options) -> list[Tensor]:
    """Add factor · gradient of each bank's similarity; return the similarities."""
    with torch.no_grad(), full_precision(jobs[0].bank.filters):
        return [add_gradient_(job, factor, options) for job in jobs]


def sum_autocorrelations(bank: KernelBank, options: Options) -> Tensor:
    """Sum the autocorrelations of a group's filters, in float64: (G, X, L)."""
    sliced = _SlicedFilters(bank, options)
    sums = [sliced.autocorrelate(c).sum(1, dtype=torch.float64) for c in sliced.channels]
    return torch.cat(sums, 1)


def add_gradient_(
    job: Job, factor: float, options: Options, further: Tensor | None = None
) -> Tensor:
    """Add one bank's gradient and return its similarity: ½ Σ ⟨a_i, N_i⟩ over its own filters.

    `further` (G, X, L) is the sum of partners that are not in the bank.
    """
    bank, gradient = job
    sliced = _SlicedFilters(bank, options)
    weight = pair_weight(bank, options)
    along_GM = bank.filters.new_zeros(bank.filters.shape[:2])

    def add(i: int, c: slice, g_GMCn: Tensor) -> None:
        assert gradient is not None
        norm, peak = sliced.norms[i]
        own = g_GMCn * (2 * weight * factor / norm / peak)
        gradient[:, sliced.filters[i], c].add_(own.unflatten(-1, bank.kernel))

    slices = range(len(sliced.filters) if gradient is not None else 0)
    for c in sliced.channels:
        a_GMXL = sliced.autocorrelate(c)
        n_GMXL = sum_partners(a_GMXL.flatten(2), options.pairs).view_as(a_GMXL)
        if further is not None:
            n_GMXL = n_GMXL + further[:, None, c].to(n_GMXL)
        along_GM += (a_GMXL * n_GMXL).sum((-2, -1))
        for i in slices:
            add(i, c, sliced.correlator.convolve(sliced.unit(i, c), n_GMXL[:, sliced.filters[i]]))
    if options.scale == "unit":
        for i in slices:
            along = along_GM[:, sliced.filters[i], None, None]
            add(i, slice(None), -sliced.unit(i, slice(None)) * along)
    return 0.5 * weight * along_GM.sum()


class _SlicedFilters:
    """A bank's scaled filters, sliced so that an intermediate has about `_ELEMENTS` numbers."""

    def __init__(self, bank: KernelBank, options: Options) -> None:
        large = bank.geometry.taps > _FOURIER_FROM[options.channels] and Fourier.serves(bank)
        self.correlator = (Fourier if large else Gram)(bank, options)
        self.filters, self.channels = _slices(bank, self.correlator.lags, options)
        self.w_GMCn = bank.filters.flatten(3)
        self.norms = [scaled_filters(self.w_GMCn[:, m], options.scale)[1:] for m in self.filters]

    def unit(self, i: int, c: slice) -> Tensor:
        """Take the i-th slice of the filters, each divided by its norm."""
        norm, peak = self.norms[i]
        return self.w_GMCn[:, self.filters[i], c] / peak / norm

    def autocorrelate(self, c: slice) -> Tensor:
        """Compute the autocorrelations of all filters over some channels: (G, M, X, L)."""
        parts = [self.correlator.autocorrelate(self.unit(i, c)) for i in range(len(self.filters))]
        return torch.cat(parts, 1)


def _slices(bank: KernelBank, lags: int, options: Options) -> tuple[list[slice], list[slice]]:
    groups, members, channels = bank.filters.shape[:3]
    taps = bank.geometry.taps
    elements = _ELEMENTS.get(bank.filters.device.type, _ELEMENTS["cpu"]) // groups
    if options.channels == "matched":
        wide = elements // (members * lags)
        long = elements // (min(channels, max(1, wide)) * max(taps**2, lags))
    else:
        wide = channels
        long = elements // max(channels * taps, taps**2)
    return _slices_of(members, long), _slices_of(channels, wide)


def _slices_of(length: int, step: int) -> list[slice]:
    step = max(1, step)
    return [slice(i, i + step) for i in range(0, length, step)]
