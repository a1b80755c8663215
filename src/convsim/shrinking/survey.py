"""What is redundant in a network: its groups, and what is lost with each number of maps kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import LayerFilter, selected_modules
from convsim.precision import full_precision
from convsim.shrinking.calibration import device_of
from convsim.shrinking.channels import Group
from convsim.shrinking.consumers import Consumer
from convsim.shrinking.groups import LeftWhole, channel_groups
from convsim.shrinking.selection import Selection, greedy_selection
from convsim.shrinking.topology import Fate, fates
from convsim.shrinking.verification import outputs, verified
from convsim.shrinking.weights import reads_maps

_PROBE = 2
"""How many images groups are traced and checked with."""
_COMPARED = 512
"""Of how many images, at least, the network's outputs are kept,"""
_MOST_BYTES = 2**28
"""and how much memory they may take if a few images are enough for it."""


@dataclass(frozen=True)
class Survey:
    """What was found in a network.

    Attributes:
        groups: The channels that can be cut, in the order of computation.
        consumers: For each group the layers that read it, with what they read.
        selections: For each group the order in which its units are needed.
        left: The layers whose channels all stay, and why.
        fates: What becomes of each layer's output.
        positions: How many times each layer's weight is multiplied with for one image.
        images: How many images were looked at.
        outputs: What the network put out for the first batches, as rows: (N, D) each.
    """

    groups: list[Group]
    consumers: list[list[Consumer]]
    selections: list[Selection]
    left: list[LeftWhole]
    fates: dict[str, Fate]
    positions: dict[str, float]
    images: int
    outputs: list[Tensor]

    def channels(self, number: int, count: int) -> list[int]:
        """List the channels of a group that stay if it keeps its `count` most needed units."""
        group, order = self.groups[number], self.selections[number].order
        return sorted(channel for unit in order[:count] for channel in group.units[unit])


def survey(
    model: nn.Module,
    inputs: Sequence[Tensor],
    *,
    layers: LayerFilter | Iterable[LayerFilter] | None,
    positions: int,
) -> Survey:
    """Find out what is redundant in a network.

    Args:
        model: The network, in ``eval()`` mode.
        inputs: Batches of images, on the CPU.
        layers: Whose outputs may be cut, as in `convsim.conv_layers`, linear layers included.
        positions: How many positions to take of every image and layer, at random.

    Raises:
        ConvsimError: If nothing can be cut.
        NonFiniteError: If a map holds NaN or infinity.
    """
    probe = inputs[0][:_PROBE].to(device_of(model))
    groups, left = channel_groups(model, probe)
    groups, unchosen = _chosen(model, groups, layers)
    groups, refuted = verified(model, groups, probe)
    left += [*unchosen, *(LeftWhole(group.name, reason) for group, reason in refuted)]
    fate_of = fates(model, probe)
    consumers = [
        [Consumer(model, slot, fate_of.get(slot.key.name)) for slot in group.consumers]
        for group in groups
    ]
    counted, rows = _read(
        model, inputs, [one for readers in consumers for one in readers], positions
    )
    told = [_too_few(group, readers) for group, readers in zip(groups, consumers, strict=True)]
    left += [LeftWhole(g.name, reason) for g, reason in zip(groups, told, strict=True) if reason]
    kept = [n for n, reason in enumerate(told) if reason is None]
    _require_some(model, kept, left)
    groups, consumers = [groups[n] for n in kept], [consumers[n] for n in kept]
    selections = [
        greedy_selection([one.reading(group.channels) for one in readers], group.units)
        for group, readers in zip(groups, consumers, strict=True)
    ]
    images = sum(map(len, inputs))
    return Survey(groups, consumers, selections, left, fate_of, counted, images, rows)


def _chosen(
    model: nn.Module,
    groups: list[Group],
    layers: LayerFilter | Iterable[LayerFilter] | None,
) -> tuple[list[Group], list[LeftWhole]]:
    """Tell the groups that only chosen layers put out from the others."""
    if layers is None:
        return groups, []
    names = {name for name, _ in selected_modules(model, layers, "layers")}
    chosen = [g for g in groups if all(slot.key.name in names for slot in g.producers)]
    left = [LeftWhole(g.name, "left out by layers=…") for g in groups if g not in chosen]
    return chosen, left


def _too_few(group: Group, readers: list[Consumer]) -> str | None:
    """Say how many samples would be needed if no consumer has one for each map."""
    most = max(readers, key=lambda one: one.statistics.samples)
    if most.statistics.samples >= group.channels:
        return None
    return (
        f"its {group.channels} channels cannot be told apart by {most.statistics.samples} samples "
        f"of what {most.name!r} reads: more images are needed"
    )


def _require_some(model: nn.Module, kept: list[int], left: list[LeftWhole]) -> None:
    if kept:
        return
    reasons = "; ".join(f"{one.layer}: {one.reason}" for one in left[:5])
    raise ConvsimError(
        f"No channel of the model ({type(model).__name__}) can go. {reasons}"
        f"{' …' if len(left) > 5 else ''}."
    )


def _read(
    model: nn.Module, inputs: Sequence[Tensor], consumers: Sequence[Consumer], positions: int
) -> tuple[dict[str, float], list[Tensor]]:
    """Run the network, let consumers look at what they read, and count multiplications.

    Returns:
        For each layer, how many positions an image its weight is multiplied at; and what the
        network puts out for the first batches.
    """
    generator = torch.Generator().manual_seed(0)
    counted: dict[str, float] = {}
    rows: list[Tensor] = []

    def look(consumer: Consumer) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            with full_precision(args[0]):
                consumer.read(args[0], positions, generator)

        return hook

    handles = [one.module.register_forward_pre_hook(look(one)) for one in consumers]
    handles += [
        module.register_forward_hook(_counter(name, counted))
        for name, module in model.named_modules()
        if reads_maps(module)
    ]
    try:
        with torch.no_grad():
            for batch in inputs:
                found = outputs(model, batch.to(device_of(model)))
                few = sum(map(len, rows)) < _COMPARED and sum(x.nbytes for x in rows) < _MOST_BYTES
                if few:
                    rows.append(as_rows(found))
    finally:
        for handle in handles:
            handle.remove()
    images = sum(map(len, inputs))
    return {name: total / images for name, total in counted.items()}, rows


def as_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Put what a network puts out for a batch into rows: (N, D), on the CPU."""
    return torch.cat([x.flatten(1).cpu() for x in tensors], 1)


def _counter(name: str, counted: dict[str, float]) -> Callable[..., None]:
    def hook(module: Any, args: Any, output: Tensor) -> None:
        maps = args[0] if getattr(module, "transposed", False) else output
        channels = maps.shape[-1 if isinstance(module, nn.Linear) else 1]
        counted[name] = counted.get(name, 0) + maps.numel() / channels

    return hook
