"""The autocorrelation of what a layer reads, measured image by image.

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
from convsim.kernels import KernelBank
from convsim.kernels.windows import ALL, sample_windows
from convsim.report.layer_redundancy import INPUT_CLASSES


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
    shares = (float(part / total) for part in (white, common, matched))
    return dict(zip(INPUT_CLASSES, shares, strict=True))
