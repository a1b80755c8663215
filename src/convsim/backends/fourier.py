"""Autocorrelation of large kernels by Fourier transforms: n·log n multiplications, not n²."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from convsim.kernels import KernelBank
from convsim.similarity import Options


class Fourier:
    """Autocorrelations over all lags, kept as images of at least twice the kernel's size less one.

    Serves convolutions of any stride: lags that the stride does not meet are set to 0. It does not
    serve strided transposed convolutions: they sort lags by phase, which a transform cannot do.
    """

    def __init__(self, bank: KernelBank, options: Options) -> None:
        self.kernel, self.crossed = bank.kernel, options.channels == "crossed"
        self.axes = tuple(range(-len(bank.kernel), 0))
        self.size = [_fast_size(2 * k - 1) for k in bank.kernel]
        self.lags = prod(self.size)
        self.kept = torch.ones((), dtype=torch.bool, device=bank.filters.device)
        for size, step in zip(self.size, bank.geometry.lag_steps, strict=True):
            # A transform keeps negative lags in the second half, from the most negative on.
            lag = (torch.arange(size, device=self.kept.device) + size // 2) % size - size // 2
            self.kept = self.kept[..., None] & (lag % min(step, size) == 0)

    @staticmethod
    def serves(bank: KernelBank) -> bool:
        """Tell whether a bank sorts its pairs of taps by their lag alone."""
        return not bank.transposed or set(bank.geometry.lag_steps) == {1}

    def autocorrelate(self, w_GMCn: Tensor) -> Tensor:
        """Compute the autocorrelation of every filter, or channel if matched: (G, M, X, L)."""
        power = self._transform(w_GMCn.unflatten(-1, self.kernel)).abs().square()
        if self.crossed:
            power = power.sum(2, keepdim=True)
        a: Tensor = torch.fft.irfftn(power, s=self.size, dim=self.axes)
        return (a * self.kept).flatten(3)

    def convolve(self, w_GMCn: Tensor, a_GMXL: Tensor) -> Tensor:
        """Convolve filters with symmetric images, at the kernel's own taps: (G, M, C, n)."""
        spectrum = self._transform(a_GMXL.unflatten(-1, self.size))
        product = self._transform(w_GMCn.unflatten(-1, self.kernel)) * spectrum
        whole: Tensor = torch.fft.irfftn(product, s=self.size, dim=self.axes)
        # Convolving with an image about 0 shifts nothing: the kernel's own taps come first.
        for axis, k in zip(self.axes, self.kernel, strict=True):
            whole = whole.narrow(axis, 0, k)
        return whole.flatten(3)

    def _transform(self, image: Tensor) -> Tensor:
        transformed: Tensor = torch.fft.rfftn(image, s=self.size, dim=self.axes)
        return transformed


def _fast_size(least: int) -> int:
    """Find the next product of 2, 3 and 5, for which a transform is fast."""
    size = least
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1
