"""DeCov (Cogswell et al. 2016, "Reducing overfitting by decorrelating representations")."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.penalties.base import ActivationPenalty, LayerReduction
from convsim.precision import at_least_float32, full_precision
from convsim.similarity.cosine import off_diagonal


@dataclass(frozen=True)
class DeCov(ActivationPenalty):
    """Penalise covariance of feature maps: ½(‖Cov‖²_F − ‖diag Cov‖²), arXiv 1511.06068, Equation 2.

    Cov is over the images and positions of a batch, divided by their number. It is 0 if and only if
    no two maps covary on the batch; scale matters.

    Deviations: the paper takes fully connected activations, one sample an image; here every
    position of a map is a sample, and maps are taken as the convolution puts them out, before
    normalization and activation.

    Cost: N·P·M² multiplications for a batch of N images of P positions, and the batch's maps are
    kept until the backward pass.
    """

    reduction: LayerReduction = "sum"

    def maps_value(self, maps: Tensor) -> Tensor:
        """Compute the penalty of one layer's feature maps (N, M, …)."""
        with full_precision(maps):
            samples_SM = at_least_float32(maps.flatten(2).transpose(1, 2).flatten(0, 1))
            centered_SM = samples_SM - samples_SM.mean(0)
            covariance_MM = centered_SM.mT @ centered_SM / len(centered_SM)
            return 0.5 * off_diagonal(covariance_MM).square().sum()
