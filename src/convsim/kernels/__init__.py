"""From a model to its kernel banks: which layers count, and each weight as groups of filters.

The only place that knows layer types and weight layouts.
"""

from convsim.kernels.bank import Geometry, KernelBank, kernel_bank
from convsim.kernels.convolutions import CONVOLUTIONS, is_convolution
from convsim.kernels.layer import ConvLayer
from convsim.kernels.selection import LayerFilter, conv_layers, selected_modules

__all__ = [
    "CONVOLUTIONS",
    "ConvLayer",
    "Geometry",
    "KernelBank",
    "LayerFilter",
    "conv_layers",
    "is_convolution",
    "kernel_bank",
    "selected_modules",
]
