"""Named choices of a penalty with its coefficient, so that nobody has to search a grid first."""

from __future__ import annotations

from dataclasses import dataclass

from convsim.errors import ConvsimError
from convsim.penalties.base import Penalty
from convsim.penalties.convolutional_similarity import ConvolutionalSimilarity


@dataclass(frozen=True)
class Preset:
    """A penalty with the coefficient and the initialization that go with it.

    Attributes:
        penalty: The penalty.
        coefficient: Its weight beside a cross-entropy loss.
        keep_norm: Whether iterative initialization by it keeps every filter's norm.
    """

    penalty: Penalty
    coefficient: float
    keep_norm: bool = True


PRESETS = {
    # Scale-free, so that it can only be lowered by changing directions, and mean-reduced, so that
    # one coefficient serves networks of any width and depth (experiments/00_first_comparison).
    "recommended": Preset(ConvolutionalSimilarity(), coefficient=3.0),
    # As in the authors' code (ZakariaeBelmekki98/Convolutional_Similarity).
    "authors": Preset(
        ConvolutionalSimilarity(pairs="adjacent", channels="matched", scale="raw", reduction="sum"),
        coefficient=0.01,
        keep_norm=False,
    ),
}


def preset(penalty: str | Penalty) -> Preset:
    """Look a preset up by name, or give a penalty that has none coefficient 1.

    Raises:
        ConvsimError: For a name that is not in `PRESETS`, or something that is no penalty.
    """
    if isinstance(penalty, Penalty):
        return Preset(penalty, coefficient=1.0)
    if penalty not in PRESETS:
        raise ConvsimError(
            f"penalty must be a Penalty or one of {', '.join(map(repr, PRESETS))}; got {penalty!r}."
        )
    return PRESETS[penalty]
