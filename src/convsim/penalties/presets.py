"""Named choices of a penalty with its coefficient, so that nobody has to search a grid first."""

from __future__ import annotations

from dataclasses import dataclass

from convsim.errors import ConvsimError, did_you_mean
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
from convsim.penalties.soft_orthogonality import SoftOrthogonality
from convsim.penalties.squared_norm import SquaredNorm
from convsim.penalties.srip import SpectralRestrictedIsometry


@dataclass(frozen=True)
class Preset:
    """A penalty with the coefficient and the initialization that go with it.

    Attributes:
        penalty: The penalty.
        coefficient: Its weight beside a cross-entropy loss.
        keep_norm: Whether iterative initialization by it keeps every filter's norm.
        initialization: What iterative initialization minimises; the penalty itself if None.
    """

    penalty: Penalty | ActivationPenalty
    coefficient: float
    keep_norm: bool = True
    initialization: Penalty | None = None


PRESETS = {
    # How alike maps are on what the network really reads (experiments/20_sampled). Scale-free,
    # so that it can only be lowered by changing directions, and a mean, so that one coefficient
    # serves networks of any width and depth: the largest that cost nothing in any cell of
    # experiments/19_when, where 1 to 3 gain more in short training. Before there is an input, the
    # kernels have to be enough.
    "recommended": Preset(
        MapSimilarity(), coefficient=0.3, initialization=ConvolutionalSimilarity()
    ),
    # The kernels alone, whatever the input (experiments/00_first_comparison); then others of that
    # family: channels apart, and neighbours only.
    "crossed": Preset(ConvolutionalSimilarity(), coefficient=3.0),
    "matched": Preset(ConvolutionalSimilarity(channels="matched"), coefficient=3.0),
    "adjacent": Preset(ConvolutionalSimilarity(pairs="adjacent"), coefficient=3.0),
    # As in the authors' code (ZakariaeBelmekki98/Convolutional_Similarity).
    "authors": Preset(
        ConvolutionalSimilarity(pairs="adjacent", channels="matched", scale="raw", reduction="sum"),
        coefficient=0.01,
        keep_norm=False,
    ),
    # Rivals, with the coefficients that experiments/05_accuracy chose for its small network.
    "cosine": Preset(CosineOrthogonality(), coefficient=1e3),
    "soft": Preset(SoftOrthogonality(), coefficient=1e-3, keep_norm=False),
    "double-soft": Preset(DoubleSoftOrthogonality(), coefficient=1e-3, keep_norm=False),
    "coherence": Preset(MutualCoherence(), coefficient=1e-3, keep_norm=False),
    "srip": Preset(SpectralRestrictedIsometry(), coefficient=1e-3, keep_norm=False),
    "ocnn": Preset(ConvolutionalOrthogonality(), coefficient=1e-4, keep_norm=False),
    "orthoreg": Preset(OrthoReg(), coefficient=1e-2),
    "decov": Preset(DeCov(), coefficient=1e-4),
    "l2": Preset(SquaredNorm(), coefficient=3e-4, keep_norm=False),
}


def preset(penalty: str | Penalty | ActivationPenalty) -> Preset:
    """Look a preset up by name, or give a penalty that has none coefficient 1.

    Raises:
        ConvsimError: For a name that is not in `PRESETS`, or something that is no penalty.
    """
    if isinstance(penalty, Penalty | ActivationPenalty):
        return Preset(penalty, coefficient=1.0)
    if not isinstance(penalty, str) or penalty not in PRESETS:
        raise ConvsimError(
            f"penalty must be a Penalty or one of {', '.join(map(repr, PRESETS))}; got {penalty!r}."
            f"{did_you_mean(str(penalty), PRESETS)}"
        )
    return PRESETS[penalty]
