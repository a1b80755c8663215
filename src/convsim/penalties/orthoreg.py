"""OrthoReg (Rodríguez et al. 2017, "Regularizing CNNs with locally constrained decorrelations")."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty
from convsim.similarity import pair_count
from convsim.similarity.cosine import cosines, off_diagonal


@dataclass(frozen=True)
class OrthoReg(Penalty):
    """Penalise positive correlation and spare negative: Σ_{i≠j} log(1 + exp(λ(cos(K_i, K_j) − 1))).

    arXiv 1611.01967, the loss with local constraints: λ sets the cosine at which the penalty
    begins; the paper takes 10. A known port to PyTorch leaves out the exponential.

    Raises:
        ConvsimError: If λ is not positive.

    Cost: M²·C·n multiplications.
    """

    sharpness: float = 10.0
    reduction: LayerReduction = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sharpness > 0:
            raise ConvsimError(f"sharpness is λ > 0; got {self.sharpness!r}.")

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        return off_diagonal(nn.functional.softplus(self.sharpness * (cosines(bank) - 1))).sum()

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether there are pairs."""
        return pair_count(bank, "all") > 0
