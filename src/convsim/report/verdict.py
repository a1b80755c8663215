"""What to do about a report, in a few sentences with the numbers behind them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from convsim.visible import visible

if TYPE_CHECKING:
    from convsim.report.layer_redundancy import LayerRedundancy
    from convsim.report.model_redundancy import ModelRedundancy

NOISE = "noise"
"""What `ModelRedundancy.data` begins with where no real input was measured."""

_SPREAD = 0.75
"""A layer whose maps use this share of their directions, or more, has little to give."""


_MANY = 0.5
"""So many pairs that are alike for each map, or more, are no matter of too few directions."""


def unrelated(pixels: int) -> float:
    """Return the mean absolute cosine of two maps of independent pixels with mean 0.

    √(2 / (π·pixels)), of large maps; what a similarity or a correlation is to be held against.

    Example:
        >>> f"{unrelated(1024):.3f}"
        '0.025'
    """
    return math.sqrt(2 / (math.pi * pixels))


def most_rank(layer: LayerRedundancy) -> int:
    """Return the rank if all maps were as different as can be.

    A layer of few inputs and small kernels has fewer directions than maps: a 3×3 kernel on grey
    images has 9. Where the next layer reads, an activation has made more of them. Fewer pixels than
    maps leave fewer, too, but many images fill them up.
    """
    limit = layer.kernels.directions if layer.kernels and layer.pooled is None else None
    return layer.filters if limit is None else min(limit, layer.filters)


def rank_share(layer: LayerRedundancy) -> float:
    """Return the effective rank as a share of `most_rank`; of all maps, if many are alike."""
    most = most_rank(layer)
    if most < layer.filters and alike(layer) >= _MANY * layer.filters:
        most = layer.filters
    return layer.effective_rank / most


def alike(layer: LayerRedundancy) -> int:
    """Count the pairs that can be folded into one, or else those that are alike on each image."""
    return len(layer.duplicates() if layer.pooled is None else layer.twins())


def most_repeated(report: ModelRedundancy) -> LayerRedundancy | None:
    """Find the layer whose maps use the smallest share of their directions, if any has two maps."""
    return min(_counted(report), key=rank_share, default=None)


def _counted(report: ModelRedundancy) -> list[LayerRedundancy]:
    return [layer for layer in report if not math.isnan(layer.similarity)]


def verdict(report: ModelRedundancy) -> str:
    """Say where a network repeats itself most, against what, and what to do about it."""
    counted, worst = _counted(report), most_repeated(report)
    if worst is None:
        return "No layer has two maps to compare: measure other layers, or larger inputs."
    maps = sum(layer.filters for layer in counted)
    rank = sum(layer.effective_rank for layer in counted)
    total = f"All {len(counted)} layers together: {maps:,} maps, effective rank {rank:,.0f}."
    if rank_share(worst) >= _SPREAD:
        advice = (
            f"Little to gain: even in {_name(worst)}, {_numbers(worst)}. Shrinking would cost "
            "accuracy; leave the network as it is."
        )
    else:
        advice = (
            f"Look first at {_name(worst)}: {_numbers(worst)}. Trained already: "
            "convsim.shrink(model, batches, parameters=0.5) keeps what is not repeated. Still to "
            "be trained: convsim.Regularizer(model)."
        )
    if report.data.startswith(NOISE):
        advice += " This was measured on noise: measure on images of yours before you act on it."
    return f"{advice} {total}"


def _name(layer: LayerRedundancy) -> str:
    return f"layer {visible(layer.name)}" if layer.name else "the model"


def _numbers(layer: LayerRedundancy) -> str:
    twins = alike(layer)
    same = f", {twins} {'pair' if twins == 1 else 'pairs'} nearly equal" if twins else ""
    return (
        f"{layer.filters} maps, rank {layer.effective_rank:.0f} (if all were different: "
        f"{most_rank(layer)}){same}; similarity {layer.similarity:.2f} (of unrelated maps: "
        f"{unrelated(layer.pixels):.2f})"
    )
