"""Random filters and inputs, and the feature maps they make.

Every draw is a group of its own, so thousands are handled at once. Shape suffixes: G draws, M
filters, C channels, k the kernel's shape, x the input's, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor, nn

from convsim.errors import require
from convsim.kernels import KernelBank


@dataclass(frozen=True)
class Setting:
    """What is drawn.

    Attributes:
        inputs: A key of `INPUTS`.
        kernels: "uniform", U(0, 1), or "normal", N(0, 1), for every weight.
        size: The kernel's length on every axis.
        axes: 1 for signals, 2 for images.
        channels: Input channels.
        filters: Filters of a draw.
        padding: "valid", "same", "full" (zeros) or "circular".
    """

    inputs: str = "uniform"
    kernels: str = "uniform"
    size: int = 9
    axes: int = 1
    channels: int = 1
    filters: int = 2
    padding: str = "valid"

    @property
    def extent(self) -> tuple[int, ...]:
        """The input's shape: 64, as in the authors' scripts, or 24 × 24."""
        return (64,) if self.axes == 1 else (24, 24)


def draw(setting: Setting, draws: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw filters (G, M, C, k) and inputs (G, C, x), float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (draws, setting.filters, setting.channels, *(setting.size,) * setting.axes)
    sample = torch.rand if setting.kernels == "uniform" else torch.randn
    filters = sample(shape, generator=generator, dtype=torch.float64)
    inputs = INPUTS[setting.inputs]((draws, setting.channels, *setting.extent), generator)
    return filters, inputs


def bank_of(filters_GMCk: Tensor) -> KernelBank:
    """See draws as the groups of one stride-1 convolution."""
    ones = (1,) * (filters_GMCk.dim() - 3)
    return KernelBank(filters_GMCk, ones, ones, transposed=False)


def feature_maps(filters_GMCk: Tensor, inputs_GCx: Tensor, padding: str) -> Tensor:
    """Convolve every draw's input with its filters: (G, M, P)."""
    groups, filters, _, *kernel = filters_GMCk.shape
    convolve = getattr(nn.functional, f"conv{len(kernel)}d")
    stacked = inputs_GCx.flatten(0, 1).unsqueeze(0)
    margin = {"valid": 0, "circular": 0, "same": kernel[0] // 2, "full": kernel[0] - 1}[padding]
    if padding == "circular":
        wrap = [n for k in reversed(kernel) for n in (0, k - 1)]
        stacked = nn.functional.pad(stacked, wrap, mode="circular")
    maps: Tensor = convolve(stacked, filters_GMCk.flatten(0, 1), padding=margin, groups=groups)
    return maps.view(groups, filters, -1)


def mean_cosine(vectors_GMn: Tensor) -> Tensor:
    """Average |cosine| over the pairs of every draw: (G,)."""
    unit = nn.functional.normalize(vectors_GMn, dim=-1)
    cosine = (unit @ unit.mT).abs()
    pairs = list(combinations(range(vectors_GMn.shape[1]), 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    return cosine[:, first, second].mean(1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _pink(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise whose amplitude falls as 1/f, of mean 0."""
    noise = _normal(shape, generator)
    axes = list(range(2, len(shape)))
    frequency = [torch.fft.fftfreq(shape[a], dtype=torch.float64) for a in axes]
    grid = torch.meshgrid(*frequency, indexing="ij")
    radius = torch.stack([f.square() for f in grid]).sum(0).sqrt()
    weight = torch.where(radius > 0, 1 / radius.clamp(min=1e-12), 0)
    pink: Tensor = torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * weight, dim=axes).real
    return pink


def _photographs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Patches, or segments of rows, of scikit-learn's two photographs, in [0, 1].

    Up to three channels are colours of one place; more are grey places of their own.
    """
    pictures = _sample_pictures()  # (2, 3, height, width)
    draws, channels, *extent = shape
    height, width = (1, *extent)[-2:]
    _, _, rows, columns = pictures.shape

    def place() -> tuple[int, int, int]:
        picture, row, column = (
            int(torch.randint(n, (), generator=generator))
            for n in (len(pictures), rows - height, columns - width)
        )
        return picture, row, column

    def patch(where: tuple[int, int, int]) -> Tensor:
        picture, row, column = where
        return pictures[picture, :, row : row + height, column : column + width]

    def one() -> Tensor:
        if channels == 3:
            return patch(place())
        return torch.stack([patch(place()).mean(0) for _ in range(channels)])

    return torch.stack([one() for _ in range(draws)]).view(shape)


@lru_cache(maxsize=1)
def _sample_pictures() -> Tensor:
    datasets = require("sklearn.datasets", "lab")
    pictures = [torch.from_numpy(image.copy()) for image in datasets.load_sample_images().images]
    return torch.stack(pictures).permute(0, 3, 1, 2).double() / 255


INPUTS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "normal": _normal,
    "photographs": _photographs,
    "1/f noise": _pink,
}
