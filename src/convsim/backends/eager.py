"""Convolutional Similarity by torch operations alone: on any device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from convsim.backends.problem import Options
from convsim.kernels import KernelBank
from convsim.similarity import bank_similarity, bank_similarity_and_gradient


def serves(bank: KernelBank, gradient: Tensor | None, options: Options) -> bool:
    """Tell whether this backend can take a layer: any."""
    return True


def add_gradients_(
    banks: Sequence[KernelBank],
    gradients: Sequence[Tensor | None],
    factors: Sequence[float],
    options: Options,
) -> list[Tensor]:
    """Add factor · gradient of each bank's similarity to `gradients`; return the similarities."""
    form = (options.pairs, options.channels, options.scale, options.reduction)
    values = []
    for bank, gradient, factor in zip(banks, gradients, factors, strict=True):
        if gradient is None:
            values.append(bank_similarity(bank, *form))
            continue
        value, own = bank_similarity_and_gradient(bank, *form)
        gradient.add_(own, alpha=factor)
        values.append(value)
    return values
