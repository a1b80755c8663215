"""What is said of a shrinking, from the two networks and what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convsim.shrinking.changes import Before, FoldedMap, FoldPicture, LayerChange
from convsim.shrinking.consumers import Consumer
from convsim.shrinking.report import ShrinkReport
from convsim.shrinking.road import Road
from convsim.shrinking.survey import Survey, as_rows

_INTO = 3
"""How many kept maps are named for one that is gone."""
_PICTURED = 8
"""How many maps that are gone are drawn of a layer."""


def summarize(
    original: nn.Module,
    small: nn.Module,
    found: Survey,
    kept: Sequence[Sequence[int]],
    road: Road,
) -> ShrinkReport:
    """Put together what shrinking did; both networks are in ``eval()`` mode.

    Args:
        original: The whole network.
        small: The smaller one.
        found: What was found in the whole one.
        kept: The channels kept of each group.
        road: How far the smaller one has come with each batch.
    """
    got = [as_rows(road.finish(number)) for number in range(len(found.outputs))]
    reasons = {one.layer: one.reason for one in found.left}
    errors: dict[str, float] = {}
    folded: dict[str, tuple[FoldedMap, ...]] = {}
    pictures: dict[str, tuple[FoldPicture, ...]] = {}
    columns = zip(found.groups, found.consumers, found.selections, kept, strict=True)
    for group, readers, selection, channels in columns:
        if len(channels) == group.channels:
            continue
        units = sum(unit[0] in set(channels) for unit in group.units)
        told = readers[0].told_by(set(channels))
        maps = _folded(told, channels)
        for slot in group.producers:
            errors[slot.key.name] = float(selection.total_errors()[units])
            folded[slot.key.name] = maps
            pictures[slot.key.name] = _pictures(readers[0], told, maps)
    layers = [
        replace(
            _layer(name, original, small, count, reasons.get(name, "")),
            error=errors.get(name, math.nan),
            folded=folded.get(name, ()),
            pictures=pictures.get(name, ()),
        )
        for name, count in found.positions.items()
    ]
    total = [sum(p.numel() for p in model.parameters()) for model in (original, small)]
    return ShrinkReport(
        model=type(original).__name__,
        images=found.images,
        parameters=Before(*total),
        macs=Before(
            sum(layer.macs.before for layer in layers), sum(layer.macs.after for layer in layers)
        ),
        output_error=output_error(found.outputs, got),
        layers=tuple(layers),
    )


def _layer(
    name: str,
    original: nn.Module,
    small: nn.Module,
    positions: float,
    reason: str,
) -> LayerChange:
    """Count what a layer is before and after."""
    modules: list[Any] = [model.get_submodule(name) for model in (original, small)]
    return LayerChange(
        name=name,
        kind=type(modules[0]).__name__,
        channels=Before(*map(_filters, modules)),
        parameters=Before(*(sum(p.numel() for p in m.parameters(recurse=False)) for m in modules)),
        macs=Before(*(round(m.weight.numel() * positions) for m in modules)),
        error=math.nan,
        reason=reason,
        folded=(),
    )


def _filters(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _folded(
    told_by: tuple[list[int], Tensor, Tensor], kept: Sequence[int]
) -> tuple[FoldedMap, ...]:
    """Name the kept maps that tell most of each one that is gone, as a consumer reads them."""
    present, a_mK, share_mK = told_by
    staying = [channel for channel in present if channel in set(kept)]
    maps = []
    for row, channel in enumerate(present):
        if channel in set(kept):
            continue
        top = share_mK[row].topk(min(_INTO, len(staying))).indices.tolist()
        told = tuple((staying[k], float(a_mK[row, k])) for k in top if float(share_mK[row, k]) > 0)
        maps.append(FoldedMap(channel, told))
    return tuple(maps)


def _pictures(
    consumer: Consumer,
    told_by: tuple[list[int], Tensor, Tensor],
    folded: Sequence[FoldedMap],
) -> tuple[FoldPicture, ...]:
    """Draw the maps that are gone and weighed most."""
    maps_mhw = consumer.pictures_mhw
    if maps_mhw is None:
        return ()
    present, a_mK, _ = told_by
    place = {channel: row for row, channel in enumerate(present)}
    gone = {fold.map for fold in folded}
    staying = [place[channel] for channel in present if channel not in gone]
    energy_m = consumer.statistics.gram().diagonal()
    heaviest = sorted(folded, key=lambda fold: -float(energy_m[place[fold.map]]))[:_PICTURED]
    told_mhw = torch.einsum("mk,khw->mhw", a_mK.float(), maps_mhw[staying])
    return tuple(
        FoldPicture(
            fold.map,
            maps_mhw[place[fold.map]],
            told_mhw[place[fold.map]],
            tuple(maps_mhw[place[channel]] for channel, _ in fold.into),
        )
        for fold in heaviest
    )


def output_error(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Compare a network's outputs on the first images with what they should be."""
    if len({rows.shape[1] for rows in wanted}) > 1:  # images of several sizes
        wanted, got = [x.flatten()[:, None] for x in wanted], [x.flatten()[:, None] for x in got]
    want, have = torch.cat([*wanted]).double(), torch.cat([*got]).double()
    variance = float((want - want.mean(0)).square().mean())
    error = float((want - have).square().mean())
    return error / variance if variance else (0.0 if not error else math.nan)
