"""The form on feature maps: the data-aware number, its gradient passed on to earlier layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.kernels.windows import spread
from convsim.penalties.base import ActivationPenalty, LayerReduction
from convsim.penalties.correlation import require_samples, squared_correlation
from convsim.precision import at_least_float32, full_precision


@dataclass(frozen=True)
class MapSimilarity(ActivationPenalty):
    """Penalise the squared correlation of a layer's feature maps: mean over all pairs i ≠ j.

    The number of `ExpectedSimilarity`, taken from the maps themselves. There the input of a layer
    is given; here the gradient goes on through it, so earlier layers learn to send what later ones
    can tell apart. Maps are taken as the convolution puts them out, before normalization and
    activation; scale does not matter, unlike in DeCov (Cogswell et al. 2016).

    Args:
        samples: How many positions, over all images of the batch, spread evenly.

    Cost: samples·M² multiplications, and the gradient of the maps is written once more.
    """

    reduction: LayerReduction = "mean"
    samples: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        require_samples(self.samples)

    def maps_value(self, maps: Tensor) -> Tensor:
        """Compute the penalty of one layer's feature maps (N, M, …)."""
        with full_precision(maps):
            maps_NMP = maps.flatten(2)
            images, _, positions = maps_NMP.shape
            chosen = spread(self.samples, images * positions).to(maps.device)
            samples_SM = at_least_float32(maps_NMP[chosen // positions, :, chosen % positions])
            return squared_correlation(samples_SM - samples_SM.double().mean(0).to(samples_SM))
