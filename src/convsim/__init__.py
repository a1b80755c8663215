"""See, shrink and train convolutional networks by how much their feature maps repeat each other."""

from typing import TYPE_CHECKING, Any

from convsim.errors import (
    ConvsimError,
    ConvsimWarning,
    DataError,
    MissingExtraError,
    NonFiniteError,
)
from convsim.initialization import InitializationHistory, initialize_
from convsim.kernels import KernelBank, conv_layers, kernel_bank
from convsim.penalties import (
    PRESETS,
    ActivationPenalty,
    ConvolutionalSimilarity,
    MapSimilarity,
    Penalty,
)
from convsim.redundancy import measure
from convsim.regularizer import Regularizer
from convsim.report import (
    KernelRedundancy,
    LayerRedundancy,
    MapPair,
    RedundancyComparison,
    RedundancyReport,
)
from convsim.similarity import convolutional_similarity, expected_similarity, similarity_matrix
from convsim.version import __version__ as __version__

if TYPE_CHECKING:
    from convsim.shrinking import LayerChange, ShrinkReport, Shrunk, load_shrunk, shrink

_SHRINKING = {"LayerChange", "ShrinkReport", "Shrunk", "load_shrunk", "shrink"}


def __getattr__(name: str) -> Any:
    """Import shrinking only when it is asked for: a training loop never needs it."""
    if name not in _SHRINKING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from convsim import shrinking  # noqa: PLC0415

    return getattr(shrinking, name)


__all__ = [  # noqa: RUF022 - in groups
    # the quantity, on a weight
    "convolutional_similarity",
    "similarity_matrix",
    "expected_similarity",
    # on a model
    "Regularizer",
    "initialize_",
    "InitializationHistory",
    "measure",
    "RedundancyReport",
    "RedundancyComparison",
    "LayerRedundancy",
    "KernelRedundancy",
    "MapPair",
    "conv_layers",
    "shrink",
    "load_shrunk",
    "Shrunk",
    "ShrinkReport",
    "LayerChange",
    # choices
    "ConvolutionalSimilarity",
    "MapSimilarity",
    "Penalty",
    "ActivationPenalty",
    "KernelBank",
    "kernel_bank",
    "PRESETS",
    # what goes wrong
    "ConvsimError",
    "NonFiniteError",
    "DataError",
    "MissingExtraError",
    "ConvsimWarning",
]
