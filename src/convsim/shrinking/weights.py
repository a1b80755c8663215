"""A convolution or linear layer as filters over what it reads, and back.

Shape suffixes: N images, G groups, M filters of a group, C channels of a group, n taps, S samples,
I and O all channels that a layer reads and puts out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convsim.kernels import ConvLayer, is_convolution
from convsim.kernels.windows import sample_windows, spread
from convsim.precision import at_least_float32


def reads_maps(module: nn.Module) -> bool:
    """Tell whether a module is a layer of filters: a convolution or a linear layer."""
    return is_convolution(module) or isinstance(module, nn.Linear)


def channel_axis(module: Any, x: Tensor) -> int:
    """Tell which axis of a layer's input or output holds channels."""
    return x.dim() - 1 - (0 if isinstance(module, nn.Linear) else len(module.kernel_size))


def filters_of(module: Any) -> Tensor:
    """Return a layer's weight as (G, M, C, n), detached, at least float32."""
    if isinstance(module, nn.Linear):
        return at_least_float32(module.weight.detach())[None, :, :, None]
    return ConvLayer("", module).bank().filters.detach().flatten(3)


def set_filters_(module: Any, filters_GMCn: Tensor) -> None:
    """Write a weight (G, M, C, n)."""
    with torch.no_grad():
        if isinstance(module, nn.Linear):
            module.weight.copy_(filters_GMCn[0, :, :, 0])
            return
        bank = ConvLayer("", module).bank()
        module.weight.copy_(bank.to_weight(filters_GMCn.reshape(bank.filters.shape)))


def rows_of(module: nn.Module, maps: Tensor, count: int) -> Tensor:
    """Take samples of a layer's input or output, spread evenly over images and positions: (S, O).

    Every position of every image is as likely as any other to be taken.
    """
    rows = maps.movedim(channel_axis(module, maps), -1).flatten(0, -2)
    return rows[spread(count, len(rows)).to(rows.device)]


def windows_of(module: Any, inputs: Tensor, count: int) -> Tensor:
    """Take what a layer reads for each of the outputs that `rows_of` takes: (G, S, C·n)."""
    if isinstance(module, nn.Linear):
        return at_least_float32(rows_of(module, inputs, count))[None]
    return sample_windows(module, ConvLayer("", module).bank(), inputs, count)


def is_linear_in_windows(module: Any, inputs: Tensor, output: Tensor) -> bool:
    """Tell whether a layer puts out its own weight times its windows, and its bias.

    One that pads in its own way, or computes its weight, does not.
    """
    if parametrize.is_parametrized(module):
        return False
    count = output.numel() // output.shape[channel_axis(module, output)]
    try:
        windows_GSP = windows_of(module, inputs, count)
    except (RuntimeError, ValueError, IndexError):
        return False
    if windows_GSP.shape[1] != count:
        return False
    told_GSM = windows_GSP @ filters_of(module).flatten(2).mT
    told_SO = told_GSM.transpose(0, 1).flatten(1)
    if module.bias is not None:
        told_SO = told_SO + module.bias.detach()
    got_SO = rows_of(module, output, count)
    scale = float(got_SO.abs().max())
    return bool((told_SO - got_SO).abs().max() <= 1e-2 * scale)
