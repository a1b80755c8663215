"""Convolutional Similarity as a penalty (Belmekki et al. 2024, arXiv 2411.03226)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convsim import backends
from convsim.kernels import KernelBank
from convsim.penalties.closed_form import ClosedFormPenalty
from convsim.similarity import (
    Channels,
    Options,
    Pairs,
    Reduction,
    Scale,
    bank_similarity,
    can_vary,
)


@dataclass(frozen=True)
class ConvolutionalSimilarity(ClosedFormPenalty):
    """Penalise filters whose feature maps can be alike.

    The options are those of `convsim.convolutional_similarity`; `reduction` holds both for the
    pairs of a layer and for the layers of a model.

    Raises:
        ConvsimError: For an unknown option.
    """

    pairs: Pairs = "all"
    channels: Channels = "crossed"
    scale: Scale = "unit"
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        _ = self._options  # refuses unknown ones

    @property
    def _options(self) -> Options:
        return Options(self.pairs, self.channels, self.scale, self.reduction)

    @property
    def takes_shares(self) -> bool:
        """Whether filters meet in a sum alone: where all are partners, not neighbours."""
        return self.pairs == "all"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute Convolutional Similarity of one layer."""
        return bank_similarity(bank, self._options)

    def value_and_gradient(self, bank: KernelBank) -> tuple[Tensor, Tensor]:
        """Compute Convolutional Similarity of one layer and its gradient in closed form."""
        gradient = torch.zeros_like(bank.filters)
        (value,) = self.add_gradients_([bank], [gradient], 1.0)
        return value, gradient

    def add_gradients_(
        self,
        banks: Sequence[KernelBank],
        gradients: Sequence[Tensor | None],
        factor: float,
    ) -> list[Tensor]:
        """Add the gradients of all layers in closed form, by the fastest backend at hand."""
        return backends.add_gradients_(banks, gradients, factor, self._options)

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether there are pairs, and lags by which directions can differ."""
        return can_vary(bank, self._options)
