"""The public door: a trained network in, a smaller one out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError
from convsim.kernels import LayerFilter
from convsim.kernels.selection import selected_modules
from convsim.precision import full_precision
from convsim.shrinking.budget import (
    Cost,
    allocate,
    channel_cost,
    multiplication_cost,
    parameter_cost,
    uniform,
    uniform_share,
)
from convsim.shrinking.calibration import (
    Batch,
    calibration_batches,
    device_of,
    require_shrinkable,
)
from convsim.shrinking.channels import Group, cut_, kept_axes
from convsim.shrinking.consumers import Consumer, add_constant_
from convsim.shrinking.groups import LeftWhole, channel_groups
from convsim.shrinking.plan import Plan, plan_of
from convsim.shrinking.selection import Selection, greedy_selection
from convsim.shrinking.sequence import solve_in_sequence_
from convsim.shrinking.topology import Fate, fates
from convsim.shrinking.verification import verified
from convsim.shrinking.weights import reads_maps, set_filters_

_PROBE = 2
"""How many images groups are traced and checked with."""
_RIDGE = 1e-3


@dataclass(frozen=True)
class Shrunk:
    """A smaller network, and how it came about.

    Attributes:
        model: The smaller network, of the original's class.
        plan: Which channels were kept.
        left: Layers whose channels all stayed, and why.
    """

    model: nn.Module
    plan: Plan
    left: tuple[LeftWhole, ...]


def shrink(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    channels: float | None = None,
    parameters: float | None = None,
    macs: float | None = None,
    layers: LayerFilter | Iterable[LayerFilter] | None = None,
    uniformly: bool = False,
    multiple_of: int = 1,
    positions: int = 32,
    in_sequence: bool = True,
) -> Shrunk:
    """Make a trained network smaller by what is redundant in it."""
    target = _target(channels=channels, parameters=parameters, macs=macs)
    require_shrinkable(model)
    inputs = calibration_batches(batches)
    original = copy.deepcopy(model).eval().requires_grad_(False)
    device = device_of(original)
    probe = torch.cat(
        [batch[:_PROBE] for batch in inputs if batch.shape[1:] == inputs[0].shape[1:]]
    )
    probe = probe[:_PROBE].to(device)
    groups, left = _groups(original, probe, layers)
    fate_of = fates(original, probe)
    consumers = [
        [Consumer(original, slot, fate_of.get(slot.key.name)) for slot in group.consumers]
        for group in groups
    ]
    counted = _read(original, inputs, consumers, positions)
    selections = [
        greedy_selection([one.reading(group.channels) for one in readers], group.units)
        for group, readers in zip(groups, consumers, strict=True)
    ]
    kept = _allocate(original, groups, selections, target, counted, uniformly, multiple_of)
    channels_kept = [
        sorted(c for unit in selection.order[:count] for c in group.units[unit])
        for group, selection, count in zip(groups, selections, kept, strict=True)
    ]
    axes = kept_axes(zip(groups, channels_kept, strict=True))
    small = copy.deepcopy(original)
    _compensate_(small, consumers, channels_kept, fate_of)
    cut_(small, axes)
    if in_sequence:
        solve_in_sequence_(
            small,
            original,
            axes,
            list(fate_of.items()),
            inputs,
            positions=positions,
            ridge=_RIDGE,
        )
    _settle_(small, model)
    return Shrunk(small, plan_of(model, axes), tuple(left))


def _settle_(small: nn.Module, model: nn.Module) -> None:
    """Give a network the modes of another: training or not, with gradients or without."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in small.named_modules():
        module.training = modes[name]
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(wanted[name])


def _target(**shares: float | None) -> tuple[str, float]:
    given = {name: share for name, share in shares.items() if share is not None}
    if len(given) != 1:
        raise ConvsimError(
            "shrink() takes one target, a share to keep: channels=, parameters= or macs=; got "
            f"{', '.join(f'{name}={share!r}' for name, share in given.items()) or 'none'}."
        )
    ((name, share),) = given.items()
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 < share <= 1:
        raise ConvsimError(
            f"{name} is the share to keep, above 0 and at most 1; got {share!r}. Half is "
            f"{name}=0.5."
        )
    return name, float(share)


def _groups(
    model: nn.Module, probe: Tensor, layers: LayerFilter | Iterable[LayerFilter] | None
) -> tuple[list[Group], list[LeftWhole]]:
    found, left = channel_groups(model, probe)
    if layers is not None:
        chosen = {name for name, _ in selected_modules(model, layers)}
        outside = [
            group for group in found if not all(slot.key.name in chosen for slot in group.producers)
        ]
        left += [LeftWhole(group.name, "layers=… leaves it out") for group in outside]
        found = [group for group in found if group not in outside]
    groups, refuted = verified(model, found, probe)
    left += [LeftWhole(group.name, reason) for group, reason in refuted]
    if not groups:
        reasons = "; ".join(f"{one.layer}: {one.reason}" for one in left[:5])
        raise ConvsimError(
            f"No channel of the model ({type(model).__name__}) can go. {reasons}"
            f"{' …' if len(left) > 5 else ''}"
        )
    return groups, left


def _read(
    model: nn.Module,
    inputs: Sequence[Tensor],
    consumers: Sequence[Sequence[Consumer]],
    positions: int,
) -> dict[str, float]:
    """Run the original network, and let the consumers look at what they read.

    Returns:
        How many positions each layer multiplies at for one image.
    """
    generator = torch.Generator().manual_seed(0)
    counted: dict[str, float] = {}
    images = 0

    def count(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            if name not in reached:
                reached.add(name)
                read = args[0] if getattr(module, "transposed", False) else output
                size = read.shape[-1 if isinstance(module, nn.Linear) else 1]
                counted[name] = counted.get(name, 0) + read.numel() / size

        return hook

    def look(consumer: Consumer) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            with full_precision(args[0]):
                consumer.read(args[0], positions, generator)

        return hook

    handles = [
        one.module.register_forward_pre_hook(look(one)) for readers in consumers for one in readers
    ]
    handles += [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if reads_maps(module)
    ]
    try:
        with torch.no_grad():
            for batch in inputs:
                reached: set[str] = set()
                model(batch.to(device_of(model)))
                images += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / images for name, total in counted.items()}


def _allocate(
    model: nn.Module,
    groups: Sequence[Group],
    selections: Sequence[Selection],
    target: tuple[str, float],
    positions: dict[str, float],
    uniformly: bool,
    multiple_of: int,
) -> list[int]:
    name, share = target
    multiples = [max(1, multiple_of * len(g.units) // g.channels) for g in groups]
    whole = [len(group.units) for group in groups]
    if name == "channels" and uniformly:
        return uniform_share(groups, share, multiples)
    cost: Cost = {
        "channels": lambda: channel_cost(groups),
        "parameters": lambda: parameter_cost(model, groups),
        "macs": lambda: multiplication_cost(model, groups, positions),
    }[name]()
    most = share * cost.at(whole) * (1 + 1e-9)
    if uniformly:
        return uniform(groups, cost, most, multiples)
    errors = [selection.total_errors() for selection in selections]
    return allocate(errors, cost, most, multiple_of=multiples)


def _compensate_(
    small: nn.Module,
    consumers: Sequence[Sequence[Consumer]],
    kept: Sequence[Sequence[int]],
    fate_of: dict[str, Fate],
) -> None:
    """Let every consumer read what is lost from the maps that stay."""
    for readers, channels in zip(consumers, kept, strict=True):
        for one in readers:
            module = small.get_submodule(one.name)
            filters, constant = one.compensated(set(channels), module)
            set_filters_(module, filters)
            fate = fate_of.get(one.name)
            norm = None if fate is None or fate.norm is None else small.get_submodule(fate.norm)
            add_constant_(module, norm, constant.flatten())
