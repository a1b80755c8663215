"""The data-aware form: what a layer's real inputs make of its kernels.

E⟨F_i, F_j⟩ = Σ K_i[c,u]·K_j[c′,v]·R[(c,u),(c′,v)], with R[(c,u),(c′,v)] the mean over images of
Σ_p X[c, s·p + d·u]·X[c′, s·p + d·v] over the positions p that the layer has, with its stride,
dilation and padding. Where borders do not count R depends on the lag v − u alone and is the
autocorrelation E[X ⋆ X]. Shape suffixes: N images, G groups, C channels of a group, n taps, R = C·n
their product, P positions.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import KernelBank, kernel_bank
from convsim.precision import full_precision
from convsim.similarity import Scale, check_options, unit_filters
from convsim.windows import ALL, sample_windows


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
    check_options("all", "crossed", scale, "sum")
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
        autocorrelation = autocorrelation / torch.where(peak > 0, peak, 1)
    with full_precision(flat_GMR):
        inner_GMM = flat_GMR @ autocorrelation.to(flat_GMR) @ flat_GMR.mT
    if scale == "unit":
        energy_GM = inner_GMM.diagonal(dim1=1, dim2=2)
        live_GM = energy_GM > 0
        factor_GM = torch.where(live_GM, torch.where(live_GM, energy_GM, 1).rsqrt(), 0)
        inner_GMM = inner_GMM * factor_GM.unsqueeze(1) * factor_GM.unsqueeze(2)
    matrix: Tensor = torch.block_diag(*inner_GMM)
    return matrix


class InputAutocorrelation:
    """Running mean over images of a convolution's input autocorrelation R: (G, C·n, C·n), float64.

    Raises:
        ConvsimError: For a transposed convolution.

    Cost: P·(C·n)² multiplications an image. Memory: (C·n)² numbers a group.
    """

    def __init__(self, name: str, module: nn.Module, bank: KernelBank) -> None:
        if bank.transposed:
            raise ConvsimError(
                f"Layer {name!r} is a transposed convolution, whose input autocorrelation is not "
                "measured. Leave it out with layers=…."
            )
        self._name, self._module, self._bank = name, module, bank
        self._sum: Tensor | int = 0
        self._images = 0

    def add(self, inputs_NCx: Tensor, positions: int) -> None:
        """Add images.

        Args:
            inputs_NCx: The layer's inputs.
            positions: How many pixels its output maps have.

        Raises:
            ConvsimError: If the layer reads its inputs in another way than its attributes say.
        """
        for image_1Cx in inputs_NCx.split(1):
            windows_GPR = sample_windows(self._module, self._bank, image_1Cx, ALL)
            if windows_GPR.shape[1] != positions:
                raise ConvsimError(
                    f"Layer {self._name!r} ({type(self._module).__name__}) put out {positions} "
                    f"positions where its stride and padding make {windows_GPR.shape[1]}: its "
                    "forward pads in its own way. Leave it out with layers=…."
                )
            self._sum = self._sum + (windows_GPR.mT @ windows_GPR).double()
        self._images += len(inputs_NCx)

    def mean(self) -> Tensor:
        """Return R, on the CPU."""
        assert isinstance(self._sum, Tensor)
        return self._sum.cpu() / self._images


def energy_by_class(autocorrelation_GRR: Tensor, bank: KernelBank) -> dict[str, float]:
    """Tell how much of an autocorrelation's energy each class of inputs holds.

    Over the lags of the kernel, R[c, c′, t] being the mean over the tap pairs (u, u + t), ‖R‖² is
    split by the classes that the penalties protect against (docs/mathematics.md): each share is
    ‖projection of R on the class‖² / ‖R‖², so that they grow from one class to the next.

    Returns:
        "white": the same power in every channel, lag 0 alone (kernel orthogonality). "common": one
        spectrum in all channels, which are uncorrelated (convolutional orthogonality). "matched": a
        spectrum by channel, uncorrelated (matched Convolutional Similarity). What is missing to 1
        is correlation between channels (crossed). NaN for inputs that are zero.
    """
    groups, _, channels = bank.filters.shape[:3]
    taps = list(product(*map(range, bank.kernel)))
    r_GCnCn = autocorrelation_GRR.view(groups, channels, len(taps), channels, len(taps))
    by_lag: dict[tuple[int, ...], list[Tensor]] = {}
    for (a, u), (b, v) in product(enumerate(taps), repeat=2):
        lag = tuple(y - x for x, y in zip(u, v, strict=True))
        by_lag.setdefault(lag, []).append(r_GCnCn[:, :, a, :, b])
    white = common = matched = total = torch.zeros((), dtype=r_GCnCn.dtype)
    for lag, blocks in by_lag.items():
        mean_GCC = torch.stack(blocks).mean(0)
        own_GC = mean_GCC.diagonal(dim1=1, dim2=2)
        shared = channels * own_GC.mean(1).square().sum()
        total = total + mean_GCC.square().sum()
        matched = matched + own_GC.square().sum()
        common = common + shared
        if not any(lag):
            white = shared
    return {
        "white": float(white / total),
        "common": float(common / total),
        "matched": float(matched / total),
    }
