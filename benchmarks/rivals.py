"""What convsim is timed against: published penalties as their formulas are usually programmed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convsim.kernels import CONVOLUTIONS

_CONVOLVE = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


def l2(weight: Tensor) -> Tensor:
    """Compute the squared norm."""
    return weight.square().sum()


def _gram_less_identity(weight: Tensor) -> Tensor:
    filters = weight.flatten(1)
    return filters @ filters.mT - torch.eye(len(filters), device=weight.device)


def soft_orthogonality(weight: Tensor) -> Tensor:
    """Compute ‖WWᵀ − I‖² over filters (Bansal et al. 2018)."""
    return _gram_less_identity(weight).square().sum()


def srip(weight: Tensor) -> Tensor:
    """Compute σ(WWᵀ − I) by two steps of power iteration (Bansal et al. 2018)."""
    matrix = _gram_less_identity(weight)
    vector = matrix @ torch.randn(len(matrix), 1, device=weight.device)
    image = matrix @ (vector / vector.norm())
    return (matrix @ image).norm() / image.norm()


def ocnn(weight: Tensor) -> Tensor:
    """Compute ‖Conv(K, K) − I₀‖² over all shifts (Wang et al. 2020)."""
    shape = weight.shape[2:]
    maps = _CONVOLVE[len(shape)](weight, weight, padding=[k - 1 for k in shape])
    centre = (..., *(k - 1 for k in shape))
    shifted = maps[centre].diagonal()
    return maps.square().sum() - 2 * shifted.sum() + len(weight)


def direct_sum(model: nn.Module) -> Callable[[], None]:
    """Sum matched Convolutional Similarity pair by pair, as its definition has it, passing back."""
    weights = _weights(model)

    def run() -> None:
        for weight in weights:
            shape, channels = weight.shape[2:], weight.shape[1]
            convolve = _CONVOLVE[len(shape)]
            padding = [k - 1 for k in shape]
            for i in range(len(weight) - 1):
                kernel = weight[i].unsqueeze(1)
                maps = convolve(weight[i + 1 :], kernel, padding=padding, groups=channels)
                maps.square().sum().backward()

    return run


def by_autograd(model: nn.Module, penalty: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Sum a penalty over all weights and pass back."""
    weights = _weights(model)

    def run() -> None:
        torch.stack([penalty(weight) for weight in weights]).sum().backward()

    return run


def _weights(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, CONVOLUTIONS)]


RIVALS: dict[str, Callable[[Tensor], Tensor]] = {
    "L2, autograd": l2,
    "soft orthogonality, autograd": soft_orthogonality,
    "SRIP, autograd": srip,
    "OCNN, autograd": ocnn,
}
