"""How much of what a network puts out is lost with each number of units kept of a group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch
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
_IMAGES = 200
"""Of how many images, at least, the outputs are compared; layers are fitted to others."""
_LEAST = 1e-9
"""The least error of the outputs that is told from none."""


def output_errors(
    original: nn.Module,
    found: Survey,
    batches: Sequence[Tensor],
    fitting: Fitting | None,
    progress: Callable[[], None],
) -> list[Tensor]:
    """Estimate for each group the error of the network's outputs, from its consumers' errors.

    Two networks are tried of each group, with half of its units and with one, all other groups
    whole. Some layers are fitted to what is left, as all will be in the end: what later layers
    repair counts for less. In between the outputs' error is a power of the consumers', and below
    the first a share of it. Half of the units lose little where all lose everything, as in front
    of the last layer, so a share alone would not do.

    Args:
        original: The network.
        found: What was found in it.
        batches: The calibration images.
        fitting: Fits layers, none if they are not to be fitted.
        progress: Called after each group.

    Returns:
        For each group the relative error with 0, 1, … of its units kept: (U + 1,).

    Cost: twice for each group a fit of four layers, and a forward pass of some hundred images, from
    the group's first layer on.
    """
    trials = _Trials(original, found, batches, fitting)
    curves = [selection.total_errors() for selection in found.selections]
    for number in sorted(range(len(curves)), key=trials.read_by.__getitem__):
        own = curves[number]
        lossy = [count for count in range(1, len(own) // 2 + 1) if own[count] >= _LOST]
        counts = sorted({max(lossy), 1}, reverse=True) if lossy else []
        curves[number] = _through(own, [(float(own[n]), trials.error(number, n)) for n in counts])
        progress()
    return curves


class _Trials:
    """Networks of which one group alone is cut, some layers fitted to what is left.

    Attributes:
        read_by: For each group the first layer that reads it, counted in the order of computation.
    """

    def __init__(
        self,
        original: nn.Module,
        found: Survey,
        batches: Sequence[Tensor],
        fitting: Fitting | None,
    ) -> None:
        images = accumulate(map(len, found.outputs), initial=0)
        compared = sum(count < _IMAGES for count in list(images)[:-1])
        fitted = batches[compared:] or batches
        self._original, self._found, self._compared = original, found, batches[:compared]
        self._rough = None if fitting is None else fitting.rough(fitted)
        self._cuts = [] if fitting is None else fitting.cuts
        self._whole = [Road(original, own, self._cuts) for own in (self._compared, fitted)]
        self._order = {name: place for place, name in enumerate(found.fates)}
        self.read_by = [
            min(self._order.get(one.name, len(self._order)) for one in readers)
            for readers in found.consumers
        ]

    def error(self, number: int, count: int) -> float:
        """Return the error of the outputs if a group keeps so many of its units."""
        found = self._found
        kept = [list(range(group.channels)) for group in found.groups]
        kept[number] = found.channels(number, count)
        small, axes = smaller(self._original, found, kept)
        names = {slot.key.name for slot in found.groups[number].producers}
        # Before it both networks compute the same. A layer without a place has no cut before it.
        start = min(names, key=lambda name: self._order.get(name, -1))
        since, since_fitted = (partial(road.before, layer=start) for road in self._whole)
        if self._rough is not None:
            layers = [x for x in self._rough.layers if self._order[x] >= self.read_by[number]]
            self._rough.fit_(small, axes, layers[:_LAYERS], since=since_fitted)
        road = Road(small, self._compared, self._cuts, since)
        got = [as_rows(road.finish(batch)) for batch in range(len(self._compared))]
        return output_error(found.outputs[: len(got)], got)


def _through(errors: Tensor, points: Sequence[tuple[float, float]]) -> Tensor:
    """Turn errors into those of the outputs, of which some are known: increasing, or any."""
    if not points or not all(math.isfinite(out) for _, out in points):
        return errors
    (low, least), (high, most) = points[0], points[-1]
    least = max(least, _LEAST)
    power = math.log(max(most, least) / least) / math.log(high / low) if high > 1.01 * low else 1.0
    steep = least * (errors / low).clamp_min(1) ** power
    return torch.where(errors <= low, least / low * errors, steep)
