"""A network without some of its channels, every consumer told what is lost by those that stay."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from convsim.shrinking.channels import KeptAxes, cut_, kept_axes
from convsim.shrinking.consumers import add_constant_
from convsim.shrinking.survey import Survey
from convsim.shrinking.weights import set_filters_


def smaller(
    original: nn.Module, found: Survey, kept: Sequence[Sequence[int]]
) -> tuple[nn.Module, KeptAxes]:
    """Cut a copy of a network down to the channels kept of each group.

    Every consumer reads W·A of the maps that stay. See `Consumer.compensated`.

    Returns:
        The copy, and which indices of the original's axes it has.
    """
    axes = kept_axes(zip(found.groups, kept, strict=True))
    small = copy.deepcopy(original)
    for group, readers, channels in zip(found.groups, found.consumers, kept, strict=True):
        if len(channels) == group.channels:
            continue
        for one in readers:
            module = small.get_submodule(one.name)
            filters, constant = one.compensated(set(channels), module)
            set_filters_(module, filters)
            fate = found.fates.get(one.name)
            norm = None if fate is None or fate.norm is None else small.get_submodule(fate.norm)
            add_constant_(module, norm, constant.flatten())
    cut_(small, axes)
    return small, axes
