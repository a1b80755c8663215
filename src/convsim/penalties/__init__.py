"""Penalties on a convolution's filters or feature maps, and their named presets."""

from convsim.penalties.activation import ActivationPenalty
from convsim.penalties.base import Penalty
from convsim.penalties.convolutional_orthogonality import ConvolutionalOrthogonality
from convsim.penalties.convolutional_similarity import ConvolutionalSimilarity
from convsim.penalties.cosine_orthogonality import CosineOrthogonality
from convsim.penalties.decov import DeCov
from convsim.penalties.double_soft_orthogonality import DoubleSoftOrthogonality
from convsim.penalties.map_similarity import MapSimilarity
from convsim.penalties.mutual_coherence import MutualCoherence
from convsim.penalties.orthoreg import OrthoReg
from convsim.penalties.presets import PRESETS, Preset, preset
from convsim.penalties.soft_orthogonality import SoftOrthogonality
from convsim.penalties.squared_norm import SquaredNorm
from convsim.penalties.srip import SpectralRestrictedIsometry

__all__ = [
    "PRESETS",
    "ActivationPenalty",
    "ConvolutionalOrthogonality",
    "ConvolutionalSimilarity",
    "CosineOrthogonality",
    "DeCov",
    "DoubleSoftOrthogonality",
    "MapSimilarity",
    "MutualCoherence",
    "OrthoReg",
    "Penalty",
    "Preset",
    "SoftOrthogonality",
    "SpectralRestrictedIsometry",
    "SquaredNorm",
    "preset",
]
