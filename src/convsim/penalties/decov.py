"""DeCov (Cogswell et al. 2016, "Reducing overfitting by decorrelating representations")."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.penalties.activation import ActivationPenalty
from convsim.penalties.base import LayerReduction
from convsim.similarity.cosine import off_diagonal


@dataclass(frozen=True)
class DeCov(ActivationPenalty):
    """Penalise covariance of feature maps: ½(‖Cov‖²_F − ‖diag Cov‖²), arXiv 1511.06068, Equation 2.

    Cov is over the sampled positions of a batch, divided by their number. It is 0 if and only if
    no two maps covary on them; scale matters.

    Deviations: the paper takes fully connected activations, one sample an image; here positions of
    a map are samples, and maps are taken as the layer puts them out, before normalization and
    activation.

    Args:
        samples: How many positions, over all images of the batch, spread evenly.

    Cost: 2·S·M² multiplications.
    """

    reduction: LayerReduction = "sum"
    samples: int = 4096

    def value(self, samples_LSM: Tensor) -> Tensor:
        """Compute the penalty of layers' maps (L, S, M)."""
        return self._value(_covariance(centered(samples_LSM)))

    def value_and_gradient(self, samples_LSM: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the penalty and its gradient 2/S · centered · Cov without diagonal."""
        centered_LSM = centered(samples_LSM)
        covariance_LMM = _covariance(centered_LSM)
        gradient_LSM = centered_LSM @ off_diagonal(covariance_LMM) * (2 / samples_LSM.shape[-2])
        return self._value(covariance_LMM), gradient_LSM

    @staticmethod
    def _value(covariance_LMM: Tensor) -> Tensor:
        return 0.5 * off_diagonal(covariance_LMM).square().sum((-2, -1))


def centered(samples_LSM: Tensor) -> Tensor:
    """Take the mean over samples out; twice, for small differences of large maps."""
    once_LSM = samples_LSM - samples_LSM.mean(-2, keepdim=True)
    return once_LSM - once_LSM.mean(-2, keepdim=True)


def _covariance(centered_LSM: Tensor) -> Tensor:
    return centered_LSM.mT @ centered_LSM / centered_LSM.shape[-2]
