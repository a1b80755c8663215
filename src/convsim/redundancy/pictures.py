"""Feature maps, kernels and images as small 8-bit pictures.

Shape suffixes: E example images, K pairs of filters, M maps, C channels, h and w a picture's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convsim.kernels import KernelBank
from convsim.report.layer_redundancy import MapPair

_MAP_SIZE = 24
_IMAGE_SIZE = 64
_SLICES = 4
_STRIP = 64


def map_pictures(maps_EMx: Tensor) -> Tensor:
    """Draw maps: (E, M, h, w) uint8, each stretched to its own range."""
    return _stretched(_small(maps_EMx.float(), _MAP_SIZE))


def image_pictures(images_ECx: Tensor) -> Tensor:
    """Draw images: (E, 1 or 3, h, w) uint8; of other channels than three, the mean over them."""
    images = images_ECx.detach().float()
    if images.dim() < 3:
        return torch.empty(0, 1, 1, 1, dtype=torch.uint8)
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True)
    images = _small(images, _IMAGE_SIZE)
    return _stretched(images.flatten(1)).view(images.shape)


def kernel_pictures(bank: KernelBank, pairs: Sequence[MapPair]) -> Tensor:
    """Draw the filters of pairs: (K, 2, slices, h, w) int8, scaled to the pair's peak."""
    filters_MCk = bank.filters.detach().flatten(0, 1).cpu().float()
    drawn = []
    for pair in pairs:
        two = filters_MCk[[pair.first, pair.second]]
        energy_C = two.flatten(2).square().sum((0, 2))
        if math.prod(bank.kernel) == 1:
            heaviest = energy_C.topk(min(_STRIP, len(energy_C))).indices.sort().values
            width = math.ceil(math.sqrt(len(heaviest)))
            strip = two[:, heaviest].flatten(1)
            strip = nn.functional.pad(strip, (0, -len(heaviest) % width))
            picture = strip.view(2, 1, -1, width)
        else:
            heaviest = energy_C.topk(min(_SLICES, len(energy_C))).indices
            picture = _flat(two[:, heaviest])
        peak = picture.abs().amax()
        drawn.append((picture / torch.where(peak > 0, peak, 1) * 127).round().to(torch.int8))
    return torch.stack(drawn)


def _flat(values: Tensor) -> Tensor:
    """See (a, b, x) as (a, b, h, w): one row of a signal, the middle slice of a volume."""
    if values.dim() == 5:
        return values[:, :, values.shape[2] // 2]
    return (
        values.unsqueeze(2)
        if values.dim() == 3
        else values.reshape(*values.shape[:2], *(values.shape[2:] or (1, 1)))
    )


def _small(values: Tensor, size: int) -> Tensor:
    values = _flat(values)
    height, width = values.shape[2:]
    return nn.functional.adaptive_avg_pool2d(values, (min(size, height), min(size, width)))


def _stretched(values: Tensor) -> Tensor:
    """Stretch (a, b, …) to 0…255 over all axes but the first two; a constant becomes 0."""
    flat = values.flatten(2) if values.dim() > 2 else values.unsqueeze(1)
    low, high = flat.aminmax(dim=-1, keepdim=True)
    span = torch.where(high > low, high - low, 1)
    stretched = ((flat - low) / span * 255).round().to(torch.uint8).cpu()
    return stretched.view(values.shape)
