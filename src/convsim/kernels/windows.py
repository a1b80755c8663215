"""What a convolution of any kind reads of its input at each position.

Per axis, a table says which pixel stands at each coordinate that the kernel walks over: padding is
written out in it, and a transposed convolution walks over its input with zeros between the pixels.
Shape suffixes: N images, G groups, C channels (of a group, in windows), S windows, n taps.
"""

from __future__ import annotations

from itertools import product
from math import gcd, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convsim.caching import kept
from convsim.errors import ConvsimError
from convsim.kernels import KernelBank

_GOLDEN = (5**0.5 - 1) / 2
_ZERO = -1  # in a table: no pixel, but a zero
_REVERSED = "zeros, taps in reverse"
ALL = 1 << 40  # as a count: every window


class _Axis(NamedTuple):
    """What decides the windows along one spatial axis."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    spacing: int  # from pixel to pixel: the stride of a transposed convolution
    mode: str

    @property
    def coordinates(self) -> int:
        """How many places the kernel walks over."""
        return self.before + self.spacing * (self.size - 1) + 1 + self.after

    @property
    def positions(self) -> int:
        """How many windows there are."""
        reach = self.dilation * (self.kernel - 1) + 1
        return max(1, (self.coordinates - reach) // self.stride + 1)


def sample_windows(module: nn.Module, bank: KernelBank, inputs: Tensor, count: int) -> Tensor:
    """Take windows of a convolution's input, spread evenly over images and positions.

    Nothing is drawn at random: a training batch is shuffled already, and training stays
    reproducible. Padding that a subclass does in its own forward, and the output_size of a
    transposed convolution, are not known here and left out.

    Args:
        module: A convolution.
        bank: Its filters, of which the shape and dtype count.
        inputs: Its input (N, C_total, …) or, unbatched, (C_total, …).
        count: How many windows; all, in their order, if there are no more.

    Returns:
        (G, S, C·n), detached, of the filters' dtype.

    Raises:
        ConvsimError: If the input does not have the layer's axes.

    Cost: S·C·n numbers are read and written.
    """
    groups, _, channels, *kernel = bank.filters.shape
    dims = len(kernel)
    x = inputs.detach()
    x = x.unsqueeze(0) if x.dim() == dims + 1 else x
    if x.dim() != dims + 2:
        raise ConvsimError(
            f"it read an input of shape {tuple(inputs.shape)}, which does not have the {dims + 2} "
            "axes (N, C, …) of its convolution. Leave it out with layers=…."
        )
    axes = _axes(module, bank, tuple(x.shape[2:]))
    picked_SnC = _take(x, axes, count)
    picked_SCn = picked_SnC.to(bank.filters.dtype).transpose(1, 2)
    return picked_SCn.reshape(-1, groups, channels * prod(kernel)).transpose(0, 1)


def _take(x: Tensor, axes: tuple[_Axis, ...], count: int) -> Tensor:
    index, inside = _places(axes, len(x), count, x.device)
    x_NPC = x.flatten(2).transpose(1, 2)
    # One gather: images (S, 1) beside pixels (S, n); zeros of the padding by the factor.
    picked_SnC: Tensor = x_NPC[index[0].unsqueeze(1), index[1:].T] * inside.T.unsqueeze(-1)
    return picked_SnC


def _axes(module: Any, bank: KernelBank, sizes: tuple[int, ...]) -> tuple[_Axis, ...]:
    if bank.transposed:  # a stride-1 convolution of pixels `spacing` apart, padded the other way
        reach = [d * (k - 1) for d, k in zip(bank.dilation, bank.kernel, strict=True)]
        sides = [
            (r - p, r - p + further)
            for r, p, further in zip(reach, module.padding, module.output_padding, strict=True)
        ]
        strides, spacings, mode = (1,) * len(sizes), bank.stride, _REVERSED
    else:
        flat = module._reversed_padding_repeated_twice  # from the last axis to the first
        sides = list(zip(flat[-2::-2], flat[::-2], strict=True))
        strides, spacings, mode = bank.stride, (1,) * len(sizes), module.padding_mode
    columns = (sizes, bank.kernel, strides, bank.dilation, sides, spacings)
    return tuple(
        _Axis(size, k, s, d, before, after, spacing, mode)
        for size, k, s, d, (before, after), spacing in zip(*columns, strict=True)
    )


@kept(256)
def _places(
    axes: tuple[_Axis, ...], images: int, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Choose windows: (1 + n, S) of image and pixels, and (n, S) 0 where a zero is read."""
    tables = [_table(axis) for axis in axes]
    lengths = [axis.positions for axis in axes]
    # A window's number, taken apart like a clock's: the last axis turns fastest.
    rest = spread(count, images * prod(lengths))
    positions: list[Tensor] = []
    for length in reversed(lengths):
        positions.insert(0, rest % length)
        rest = rest // length
    rows, insides = [rest], []
    for taps in product(*(range(axis.kernel) for axis in axes)):
        pixel, inside = torch.zeros_like(rest), torch.ones_like(rest, dtype=torch.bool)
        # A transposed convolution meets its taps in reverse.
        for axis, table, p, u in zip(axes, tables, positions, taps, strict=True):
            v = axis.kernel - 1 - u if axis.mode == _REVERSED else u
            source = table[(axis.stride * p + axis.dilation * v).clamp(max=len(table) - 1)]
            pixel = pixel * axis.size + source.clamp(min=0)  # its place in the flattened image
            inside &= source != _ZERO
        rows.append(pixel)
        insides.append(inside)
    return torch.stack(rows).to(device), torch.stack(insides).to(device)


def _table(axis: _Axis) -> Tensor:
    """Say which pixel stands at each coordinate, `_ZERO` for none."""
    pixels = torch.full((axis.spacing * (axis.size - 1) + 1,), _ZERO, device="cpu")
    pixels[:: axis.spacing] = torch.arange(axis.size, device="cpu")
    fill: dict[str, Any] = (
        {"value": _ZERO} if axis.mode in ("zeros", _REVERSED) else {"mode": axis.mode}
    )
    # As float64, which pad takes in every mode.
    padded = nn.functional.pad(pixels[None, None].double(), (axis.before, axis.after), **fill)
    return padded[0, 0].long()


def spread(count: int, total: int) -> Tensor:
    """Choose `count` of `total` indices, or all, evenly: also by row, by column and by image.

    Steps of the golden section that share no divisor with `total`, and so none with a map's sides.
    """
    if total <= count:
        return torch.arange(total, device="cpu")
    step = round(_GOLDEN * total)
    while gcd(step, total) > 1:
        step += 1
    return torch.arange(count, device="cpu") * step % total
