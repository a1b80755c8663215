"""The data-aware form: how alike feature maps are on the inputs that a layer really reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty
from convsim.penalties.correlation import require_samples, squared_correlation
from convsim.precision import full_precision
from convsim.similarity import unit_filters


@dataclass(frozen=True)
class ExpectedSimilarity(Penalty):
    """Penalise the squared correlation of feature maps on real inputs: mean over all pairs i ≠ j.

    With R the autocorrelation of a layer's input, E⟨F_i, F_j⟩ = ⟨K_i ⋆ K_j, R⟩
    (docs/mathematics.md): where `ConvolutionalSimilarity` bounds that over every R and kernel
    orthogonality takes R to be white, this takes R as it is. It is estimated from windows of the
    layer's input in the last forward pass, and the mean of every map is taken out, as a
    normalization layer does:

        penalty = mean over i ≠ j of ρ_ij²,   ρ_ij = Σ_w F_i[w]·F_j[w] / (‖F_i‖·‖F_j‖)

    with F[w] = K·w less its mean over the windows w. The input is taken as given: the gradient
    reaches the layer's own kernels, and norms do not matter. It is 0 if no two maps correlate and 1
    if all are multiples of each other; a map that is constant correlates with none. Sampling adds
    to every ρ² about 1 over the number of windows, or of images where windows of one image are
    alike. Filters of different groups are compared too, so it acts on
    depthwise layers, and on 1×1 kernels.

    DeCov (Cogswell et al. 2016) penalises covariance, which a smaller scale lowers too, of all of a
    batch's maps, and passes its gradient on to earlier layers.

    Args:
        samples: How many windows of a layer's input.
        centered: Whether the mean is taken out.

    A layer that runs more than once counts as it ran last.

    Cost: samples·M·(C·n + M) multiplications, whatever the size of batch and maps; the windows,
    samples·C·n numbers for each layer, are kept until the next forward pass. Where a batch has few
    positions (late layers on small images) 1,024 windows are a large share of a layer's own work.
    """

    reduction: LayerReduction = "mean"
    samples: int = 1024
    centered: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_samples(self.samples)

    @property
    def windows(self) -> int:
        """How many windows of a layer's input the penalty wants."""
        return self.samples

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer.

        Raises:
            ConvsimError: If the bank has no inputs.
        """
        if bank.inputs is None:
            raise ConvsimError(
                f"{self} needs what the layer reads: call it after a forward pass in train() mode, "
                "through convsim.Regularizer."
            )
        with full_precision(bank.filters):
            x_GSR = bank.inputs
            if self.centered:  # before the product: small differences of large maps would be lost
                x_GSR = x_GSR - x_GSR.double().mean(1, keepdim=True).to(x_GSR)
            f_GSM = x_GSR @ unit_filters(bank).flatten(2).mT
            return squared_correlation(f_GSM.transpose(0, 1).flatten(1))

    def acts_on(self, bank: KernelBank) -> bool:
        """Tell whether the layer has two maps or more."""
        return bank.filters.shape[0] * bank.filters.shape[1] > 1
