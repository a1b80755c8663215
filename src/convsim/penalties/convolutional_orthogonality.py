"""Convolutional orthogonality (Wang et al. 2020, "OCNN", arXiv 1911.12207, Equation 6)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import KernelBank
from convsim.penalties.base import LayerReduction, Penalty
from convsim.precision import full_precision


@dataclass(frozen=True)
class ConvolutionalOrthogonality(Penalty):
    """Penalise filters that are not orthogonal at some shift: ‖Conv(K, K) − I₀‖²_F.

    Conv(K, K)[i, j, t] = Σ_c (K[i,c] ⋆ K[j,c])[t] at every lag t of the kernel that the stride
    meets, those with dilation·t divisible by it; I₀ is 1 for i = j, t = 0. It is 0 if and only if
    the rows of the layer's doubly block-Toeplitz matrix are orthonormal: filters and their shifts.
    An identity kernel is such, at any stride.

    The paper's formula, not its published code, which covers lags −1…1 only and puts the identity
    at the wrong lag for stride 2. Groups are taken one by one.

    Raises:
        ConvsimError: For a transposed convolution, whose matrix is laid out the other way.

    Cost: M²·C·n·lags multiplications, or what torch's convolution makes of them.
    """

    reduction: LayerReduction = "sum"

    def value(self, bank: KernelBank) -> Tensor:
        """Compute the penalty of one layer."""
        self.acts_on(bank)  # or refuses
        step = bank.geometry.lag_steps
        padding = [(k - 1) // q * q for k, q in zip(bank.kernel, step, strict=True)]
        convolve = getattr(nn.functional, f"conv{len(bank.kernel)}d")
        total = bank.filters.new_zeros(())
        with full_precision(bank.filters):
            for filters_MCk in bank.filters:
                overlap = convolve(filters_MCk, filters_MCk, stride=step, padding=padding)
                lag_0 = (..., *(p // q for p, q in zip(padding, step, strict=True)))
                # ‖Z − I₀‖² = ‖Z‖² − 2 tr Z₀ + M, summed so that nothing is written in place.
                trace = overlap[lag_0].diagonal()
                total = total + overlap.square().sum() - trace.square().sum()
                total = total + (trace - 1).square().sum()
        return total

    def acts_on(self, bank: KernelBank) -> bool:
        """Refuse a transposed convolution."""
        if bank.transposed:
            raise ConvsimError(
                "ConvolutionalOrthogonality is defined for convolutions, not for transposed ones. "
                "Leave the layer out with layers=…."
            )
        return True
