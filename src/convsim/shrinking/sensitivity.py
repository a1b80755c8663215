"""How much of what a network puts out is lost for what each group's consumers lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from convsim.shrinking.road import Road
from convsim.shrinking.sequence import Fitting
from convsim.shrinking.smaller import smaller
from convsim.shrinking.summary import output_error
from convsim.shrinking.survey import Survey, as_rows

_LOST = 1e-6
"""The least relative error of its consumers' outputs that a group is tried with."""
_LAYERS = 4
"""How many layers, from the first consumer on, are fitted to it; more told little more."""
_IMAGES = 300
"""Of how many images, at least, the outputs are compared."""
_LEAST = 1e-4
"""The least sensitivity, relative to the largest."""


def sensitivities(
    original: nn.Module,
    found: Survey,
    batches: Sequence[Tensor],
    fitting: Fitting | None,
    progress: Callable[[], None],
) -> list[float]:
    """Measure for each group the error of the network's outputs for one of its consumers'.

    Of one group after the other half of the units go, more if nothing is lost yet, and some layers
    are fitted to what is left, as all will be in the end: what later layers repair counts for less.
    The last layer, which none repairs, often counts ten times as much as others.

    Args:
        original: The network.
        found: What was found in it.
        batches: The calibration images.
        fitting: Fits layers, none if they are not to be fitted.
        progress: Called after each group.

    Returns:
        A factor for each group's errors, 1 for all if they do not show in the outputs.

    Cost: for each group a fit of four layers and a forward pass of some hundred images from there.
    """
    order = {name: number for number, name in enumerate(found.fates)}
    first = [min(order.get(one.name, len(order)) for one in readers) for readers in found.consumers]
    lost = [1.0] * len(found.groups)
    for number in sorted(range(len(first)), key=first.__getitem__):
        errors = found.selections[number].total_errors()
        units = len(errors) - 1
        lossy = [count for count in range(1, units // 2 + 1) if errors[count] >= _LOST]
        if lossy:
            count = max(lossy)
            layers = [] if fitting is None else fitting.layers
            fitted = [name for name in layers if order[name] >= first[number]][:_LAYERS]
            error = _output_error(original, found, batches, number, count, fitting, fitted)
            lost[number] = error / float(errors[count])
        progress()
    if not all(map(math.isfinite, lost)) or not any(lost):
        return [1.0] * len(lost)
    return [max(one, _LEAST * max(lost)) for one in lost]


def _output_error(
    original: nn.Module,
    found: Survey,
    batches: Sequence[Tensor],
    number: int,
    count: int,
    fitting: Fitting | None,
    fitted: Sequence[str],
) -> float:
    """Keep so many units of one group, and compare what the network puts out."""
    kept = [list(range(group.channels)) for group in found.groups]
    kept[number] = found.channels(number, count)
    small, axes = smaller(original, found, kept)
    road = Road(small, batches) if fitting is None else fitting.fit_(small, axes, fitted)
    wanted: list[Tensor] = []
    for rows in found.outputs:
        if sum(map(len, wanted)) < _IMAGES:
            wanted.append(rows)
    return output_error(wanted, [as_rows(road.finish(n)) for n in range(len(wanted))])
