"""Networks cut to chosen channels and fitted, and which of several comes nearest the original.

Shape suffixes: N images, D numbers that a network puts out for one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.shrinking.calibration import device_of
from convsim.shrinking.channels import KeptAxes, cut_, kept_axes
from convsim.shrinking.consumers import add_constant_
from convsim.shrinking.road import Road
from convsim.shrinking.sequence import solve_in_sequence_
from convsim.shrinking.survey import Survey, as_rows
from convsim.shrinking.verification import disagreement
from convsim.shrinking.weights import set_filters_

_RIDGE = 1e-3
"""Of the regressions in sequence, relative to the mean square of each predictor."""

Kept = list[list[int]]
"""The channels kept of each group."""


@dataclass(frozen=True)
class Fitted:
    """A smaller network.

    Attributes:
        model: The network, in ``eval()`` mode.
        kept: The channels kept of each group.
        axes: Which indices of the original's axes it has.
        outputs: What it puts out for the first batches, as rows (N, D).
        scores: Whether that is one row an image, as the scores of classes are.
    """

    model: nn.Module
    kept: Kept
    axes: KeptAxes
    outputs: list[Tensor]
    scores: bool

    def divergence(self, wanted: Sequence[Tensor]) -> float:
        """Measure how far its outputs are from what they should be.

        Of a row for each image, as of scores of classes, that is the Kullback-Leibler divergence of
        their softmax, which foresees the accuracy better than a squared error does; of anything
        else the mean squared error.
        """
        want, have = (
            torch.cat([x.flatten() for x in rows]).double() for rows in (wanted, self.outputs)
        )
        if not self.scores:
            return float((want - have).square().mean())
        size = wanted[0].shape[1]
        log_want, log_have = (x.view(-1, size).log_softmax(1) for x in (want, have))
        return float((log_want.exp() * (log_want - log_have)).sum(1).mean())


def fit(
    original: nn.Module,
    found: Survey,
    kept: Kept,
    inputs: Sequence[Tensor],
    *,
    positions: int,
    in_sequence: bool,
    progress: Callable[[int, int], None],
) -> Fitted:
    """Cut a network to chosen channels, and let what stays make up for what is gone.

    Args:
        original: The network, in ``eval()`` mode.
        found: What was found in it.
        kept: The channels to keep of each group.
        inputs: The calibration images.
        positions: As in `convsim.shrink`, and so the next two.
        in_sequence: As in `convsim.shrink`.
        progress: As in `convsim.shrink`.

    Raises:
        ConvsimError: If the channels cannot be cut together.
    """
    _require_sound(original, found, kept, inputs[0])
    axes = kept_axes(zip(found.groups, kept, strict=True))
    small = copy.deepcopy(original)
    _compensate_(small, found, kept)
    cut_(small, axes)
    road = Road(small, inputs, ())
    if in_sequence:
        road = solve_in_sequence_(
            small, original, axes, found.fates, inputs, per_image=found.positions,
            positions=positions, ridge=_RIDGE, progress=progress,
        )  # fmt: skip
    put_out = [road.finish(number) for number in range(len(found.outputs))]
    first = put_out[0]
    scores = len(first) == 1 and first[0].dim() == 2 and first[0].shape[1] > 1
    return Fitted(small, kept, axes, [*map(as_rows, put_out)], scores)


def nearest(
    plans: Sequence[Kept], start: int, wanted: Sequence[Tensor], make: Callable[[Kept], Fitted]
) -> Fitted:
    """Fit neighbouring plans, from one on as long as the outputs come nearer the original's.

    Args:
        plans: The channels to keep, in an order in which the divergence falls and then rises.
        start: Which to begin with.
        wanted: What the outputs should be.
        make: Fits a network to a plan.
    """
    best = make(plans[start])
    if len(plans) == 1:
        return best
    least = best.divergence(wanted)
    for way in (range(start, len(plans)), range(start, -1, -1)):
        for _, there in pairwise(way):
            one = make(plans[there])
            divergence = one.divergence(wanted)
            if divergence >= least:
                break
            best, least = one, divergence
        if best.kept != plans[start]:
            break
    return best


def _require_sound(model: nn.Module, found: Survey, kept: Kept, inputs: Tensor) -> None:
    """Check the cut as a whole, as each group was checked with some channels."""
    exact = copy.deepcopy(model).double()
    few = inputs[:2].to(device_of(model)).double()
    reason = disagreement(exact, zip(found.groups, kept, strict=True), few)
    if reason is not None:
        raise ConvsimError(
            f"The channels chosen cannot be cut together: {reason}. Leave layers out with layers=…."
        )


def _compensate_(small: nn.Module, found: Survey, kept: Kept) -> None:
    """Let every consumer tell what is lost from the maps that stay."""
    for readers, channels in zip(found.consumers, kept, strict=True):
        for one in readers:
            module = small.get_submodule(one.name)
            filters, constant = one.compensated(set(channels), module)
            set_filters_(module, filters)
            fate = found.fates.get(one.name)
            norm = None if fate is None or fate.norm is None else small.get_submodule(fate.norm)
            add_constant_(module, norm, constant.flatten())
