"""The layer types that convsim knows."""

from __future__ import annotations

from torch import nn

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""The layer types; transposed ones have the weight's layout (in, out/groups, k)."""


def is_convolution(module: nn.Module) -> bool:
    """Tell whether a module is a convolution that convsim knows."""
    return isinstance(module, CONVOLUTIONS)
