"""What a convolution reads of its input at each position.

Shape suffixes: N images, G groups, C channels (of a group, in windows), P positions, n taps, S
windows that were sampled, R = C·n their length.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import KernelBank

_IMAGES = 32  # windows of one image are alike, so they come from this many or more
_GOLDEN = (5**0.5 - 1) / 2


def windows(module: nn.Module, bank: KernelBank, inputs_NCx: Tensor) -> Tensor:
    """Lay out what a convolution reads at each position: (N, C_total, *positions, *kernel), a view.

    The view is of a copy of the inputs where the layer pads them; padding that a subclass does in
    its own forward is not known here and left out. A transposed convolution reads
    its input with zeros between the pixels, the taps in reverse (`ConvTranspose`'s output_size is
    not known here and taken to be the default).
    """
    layer: Any = module
    if bank.transposed:
        x, stride = _between_zeros(layer, bank, inputs_NCx), (1,) * len(bank.kernel)
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = nn.functional.pad(inputs_NCx, layer._reversed_padding_repeated_twice, mode=mode)
        stride = bank.stride
    for axis, (k, s, d) in enumerate(zip(bank.kernel, stride, bank.dilation, strict=True)):
        x = x.unfold(axis + 2, d * (k - 1) + 1, s)[..., ::d]
    return x


def _between_zeros(layer: Any, bank: KernelBank, x: Tensor) -> Tensor:
    sizes = [s * (size - 1) + 1 for s, size in zip(bank.stride, x.shape[2:], strict=True)]
    spread = x.new_zeros((*x.shape[:2], *sizes))
    between = spread
    for axis, s in enumerate(bank.stride):
        between = between.unfold(axis + 2, 1, s).squeeze(-1)
    between.copy_(x)
    sides: list[int] = []  # from the last axis to the first
    axes = zip(bank.kernel, bank.dilation, layer.padding, layer.output_padding, strict=True)
    for k, d, padding, further in axes:
        reach = d * (k - 1) - padding
        sides = [reach, reach + further, *sides]
    return nn.functional.pad(spread, sides)


def sample_windows(module: nn.Module, bank: KernelBank, inputs: Tensor, count: int) -> Tensor:
    """Take windows from the first images of a batch, spread evenly over images and positions.

    Nothing is drawn at random: the batch is shuffled already, and training stays reproducible.

    Args:
        module: A convolution.
        bank: Its filters, of which the shape and dtype count.
        inputs: Its input (N, C_total, …) or, unbatched, (C_total, …).
        count: How many windows; all there are if there are fewer.

    Returns:
        (G, S, C·n), detached, of the dtype that the filters are computed in.

    Raises:
        ConvsimError: If the input does not have the layer's axes.
    """
    groups, _, channels, *kernel = bank.filters.shape
    x = inputs.detach()
    x = x.unsqueeze(0) if x.dim() == len(kernel) + 1 else x
    if x.dim() != len(kernel) + 2:
        raise ConvsimError(
            f"it read an input of shape {tuple(inputs.shape)}, which has not the {len(kernel) + 2} "
            "axes (N, C, …) of its convolution. Leave it out with layers=…."
        )
    images = max(_IMAGES, ceil(count * prod(bank.stride) / max(1, prod(x.shape[2:]))))
    view = windows(module, bank, x[:images])
    view = view.movedim(1, 1 + len(kernel))  # (N, *positions, C_total, *kernel)
    places = view.shape[: 1 + len(kernel)]
    picked = view[torch.unravel_index(_spread(count, prod(places), x.device), places)]
    if bank.transposed:
        picked = picked.flip(tuple(range(2, picked.dim())))
    sampled_SGR = picked.to(bank.filters.dtype).reshape(-1, groups, channels * prod(kernel))
    return sampled_SGR.transpose(0, 1)


@lru_cache(maxsize=256)
def _spread(count: int, total: int, device: torch.device) -> Tensor:
    """Choose `count` of `total` indices, evenly and without a period (golden-section steps)."""
    if total <= count:
        return torch.arange(total, device=device)
    steps = torch.arange(count, dtype=torch.float64) * _GOLDEN
    return ((steps % 1) * total).long().to(device)
