"""Convolutional Similarity as a penalty (Belmekki et al. 2024, arXiv 2411.03226)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.kernels import KernelBank
from convsim.penalties.base import Penalty
from convsim.similarity import (
    Channels,
    Pairs,
    Reduction,
    Scale,
    bank_similarity,
    bank_similarity_and_gradient,
    can_vary,
    check_options,
)


@dataclass(frozen=True)
class ConvolutionalSimilarity(Penalty):
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
        check_options(self.pairs, self.channels, self.scale, self.reduction)

    def value(self, bank: KernelBank) -> Tensor:
        """Compute Convolutional Similarity of one layer."""
        return bank_similarity(bank, self.pairs, self.channels, self.scale, self.reduction)

    def value_and_gradient(self, bank: KernelBank) -> tuple[Tensor, Tensor]:
        """Compute Convolutional Similarity of one layer and its gradient in closed form."""
        return bank_similarity_and_gradient(
            bank, self.pairs, self.channels, self.scale, self.reduction
        )

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether there are pairs, and lags by which directions can differ."""
        return can_vary(bank, self.pairs, self.channels, self.scale)
