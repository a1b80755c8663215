"""How alike feature maps are on inputs of a known autocorrelation.

E⟨F_i, F_j⟩ = Σ K_i[c,u]·K_j[c′,v]·R[(c,u),(c′,v)] (docs/mathematics.md), with R as
`convsim.redundancy.input_autocorrelation` measures it. Shape suffixes: G groups, M filters of a
group, C channels of a filter, n taps, R = C·n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsim.errors import ConvsimError
from convsim.kernels import kernel_bank
from convsim.precision import divisor, full_precision
from convsim.similarity.convolutional import Options, Scale, unit_filters


def expected_similarity(
    weight: Tensor, autocorrelation: Tensor, *, groups: int = 1, scale: Scale = "unit"
) -> Tensor:
    """Compute the expected similarity of every two feature maps, from kernels and a mean input.

    Exact for the layer that the autocorrelation was measured on, less its bias: with
    ``scale="raw"`` E⟨F_i, F_j⟩, with "unit" E⟨F_i, F_j⟩ / √(E‖F_i‖²·E‖F_j‖²), in [−1, 1]. With the
    identity for an autocorrelation, that of white inputs, these are kernel orthogonality: inner
    products and cosines of the kernels.

    Args:
        weight: (M, C, k) of a convolution.
        autocorrelation: (groups, C·n, C·n), n the number of taps, as
            ``measure(…, autocorrelation=True)`` keeps it by layer.
        groups: The convolution's groups.
        scale: "unit" or "raw".

    Returns:
        (M, M), 0 between groups, and for "unit" in the rows and columns of maps that vanish.
        float64 for a float64 weight and float32 for any other. Differentiable in both.

    Raises:
        ConvsimError: If the shapes do not fit, or the scale is unknown.

    Cost: M·(C·n)² multiplications.

    Example:
        >>> weight = torch.eye(2).view(2, 1, 2)
        >>> expected_similarity(weight, torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    Options(scale=scale)  # refuses an unknown one
    bank = kernel_bank(weight, groups=groups)
    filters_GMCn = unit_filters(bank) if scale == "unit" else bank.filters
    flat_GMR = filters_GMCn.flatten(2)
    wanted = (groups, flat_GMR.shape[-1], flat_GMR.shape[-1])
    if not isinstance(autocorrelation, Tensor) or autocorrelation.is_complex():
        raise ConvsimError("The autocorrelation must be a real torch.Tensor.")
    if tuple(autocorrelation.shape) != wanted:
        raise ConvsimError(
            f"The autocorrelation must be (groups, C·n, C·n) = {wanted} for a weight of shape "
            f"{tuple(weight.shape)}; got {tuple(autocorrelation.shape)}. Measure it on this layer."
        )
    if scale == "unit":  # of inputs of any size, as of filters
        peak = autocorrelation.detach().abs().amax()
        autocorrelation = autocorrelation / divisor(peak)
    with full_precision(flat_GMR):
        inner_GMM = flat_GMR @ autocorrelation.to(flat_GMR) @ flat_GMR.mT
    if scale == "unit":
        energy_GM = inner_GMM.diagonal(dim1=1, dim2=2)
        factor_GM = torch.where(energy_GM > 0, divisor(energy_GM).rsqrt(), 0)
        inner_GMM = inner_GMM * factor_GM.unsqueeze(1) * factor_GM.unsqueeze(2)
    matrix: Tensor = torch.block_diag(*inner_GMM)
    return matrix
