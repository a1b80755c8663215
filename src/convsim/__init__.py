"""Measure and reduce the redundancy of convolutional feature maps, from the kernels alone."""

__version__ = "0.1.0.dev0"
