"""Penalties on a convolution's filters, all with one signature, and their named presets."""

from convsim.penalties.base import Penalty
from convsim.penalties.convolutional_similarity import ConvolutionalSimilarity
from convsim.penalties.presets import PRESETS, Preset, preset

__all__ = ["PRESETS", "ConvolutionalSimilarity", "Penalty", "Preset", "preset"]
