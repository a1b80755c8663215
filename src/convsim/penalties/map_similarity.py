"""The form on feature maps: how alike they are on what the network really reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from convsim.backends import maps
from convsim.penalties.activation import ActivationPenalty, Weighted
from convsim.penalties.base import LayerReduction
from convsim.penalties.correlation import squared_correlation, squared_correlation_and_gradient


@dataclass(frozen=True)
class MapSimilarity(ActivationPenalty):
    """Penalise the squared correlation of a layer's feature maps: mean over all pairs i ≠ j.

    The mean of every map is taken out, as a normalization layer does:

        penalty = mean over i ≠ j of ρ_ij²,   ρ_ij = Cov_ij / √((Cov_ii + ε)(Cov_jj + ε))

    with Cov the covariance over sampled positions and ε = 1e-5, as torch's normalization layers
    have it: ρ is the covariance of what they make of the maps. Without ε the gradient would have
    no bound for maps that are nearly constant, as those of a branch that starts at zero. Where
    `ConvolutionalSimilarity` bounds E⟨F_i, F_j⟩ for every input and kernel orthogonality takes
    inputs to be white, this takes them as they are. The gradient reaches the layer's kernels and,
    through its input, earlier layers. It is 0 if no two maps correlate and 1 if all are multiples
    of each other; scale does not matter while variances are far above ε, and a constant map
    correlates with none. Sampling adds to every ρ² about 1 over the number of samples. Maps are
    taken as the layer puts them out, before normalization and activation.

    DeCov (Cogswell et al. 2016) penalises covariance instead, which a smaller scale lowers too.

    Args:
        samples: How many positions, over all images of the batch, spread evenly.

    Cost: 2·S·M·min(S, M) multiplications, whatever the batch, image size and kernel.
    """

    reduction: LayerReduction = "mean"
    samples: int = 256

    def value(self, samples_LSM: Tensor) -> Tensor:
        """Compute the penalty of layers' maps (L, S, M)."""
        return squared_correlation(samples_LSM)

    def value_and_gradient(self, samples_LSM: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the penalty and its gradient (L, S, M), in closed form."""
        return squared_correlation_and_gradient(samples_LSM)

    def weighted(self, samples: Sequence[Tensor], weights: Sequence[float]) -> Weighted:
        """Compute `total` with its gradient, in C++ where it serves."""
        if type(self) is not MapSimilarity or not maps.serve(samples):
            return super().weighted(samples, weights)
        total, gradients = maps.squared_correlations(samples, weights)
        return Weighted(total, [[number] for number in range(len(samples))], gradients)
