"""One budget over a network: how much of each group to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from convsim.shrinking.channels import AxisKey, Group, axis_size
from convsim.shrinking.weights import reads_maps

_STEPS = 32
"""In how many steps a group goes from all to nothing, at the least."""


@dataclass(frozen=True)
class Extent:
    """How long an axis is: `fixed` and, for each unit kept of group g, units[g] more."""

    fixed: float
    units: dict[int, float]

    def at(self, kept: Sequence[int]) -> float:
        """Return its length with so many units kept of each group."""
        return self.fixed + sum(each * kept[group] for group, each in self.units.items())


@dataclass(frozen=True)
class Term:
    """A tensor's numbers, or a layer's multiplications: a factor times the lengths of its axes."""

    factor: float
    axes: tuple[Extent, ...]

    def at(self, kept: Sequence[int]) -> float:
        """Return its value with so many units kept of each group."""
        return self.factor * prod(axis.at(kept) for axis in self.axes)


@dataclass(frozen=True)
class Cost:
    """What a network costs, in parameters, multiplications or channels."""

    fixed: float
    terms: tuple[Term, ...]

    def at(self, kept: Sequence[int]) -> float:
        """Return the cost with so many units kept of each group."""
        return self.fixed + sum(term.at(kept) for term in self.terms)

    def groups(self) -> set[int]:
        """Return the groups that it depends on."""
        return {group for term in self.terms for axis in term.axes for group in axis.units}

    def of(self, group: int) -> Cost:
        """Return the part that depends on one group."""
        terms = (term for term in self.terms if any(group in axis.units for axis in term.axes))
        return Cost(0.0, tuple(terms))


def parameter_cost(model: nn.Module, groups: Sequence[Group]) -> Cost:
    """Count a network's parameters."""
    extents = _extents(model, groups)
    cut_modules = {key.name for key in extents if key.role != "parameter"}
    terms = [
        Term(factor, axes)
        for name in sorted(cut_modules)
        for factor, axes in _module_terms(model, name, extents)
    ]
    for key, extent in extents.items():
        if key.role == "parameter":
            parameter = model.get_parameter(key.name)
            terms.append(Term(parameter.numel() / parameter.shape[key.axis], (extent,)))
    whole = [len(group.units) for group in groups]
    total = sum(parameter.numel() for parameter in model.parameters())
    return Cost(total - sum(term.at(whole) for term in terms), tuple(terms))


def multiplication_cost(
    model: nn.Module, groups: Sequence[Group], positions: dict[str, float]
) -> Cost:
    """Count the multiplications of its convolutions and linear layers for one image.

    Args:
        model: The network.
        groups: Its groups.
        positions: How many outputs each filter of each layer makes for an image; of a transposed
            convolution how many inputs each of its filters reads.
    """
    extents = _extents(model, groups)
    terms: list[Term] = []
    fixed = 0.0
    for name, count in positions.items():
        module = model.get_submodule(name)
        factor, axes = _weight_term(module, name, extents)
        if any(axis.units for axis in axes):
            terms.append(Term(factor * count, axes))
        else:
            fixed += Term(factor * count, axes).at(())
    return Cost(fixed, tuple(terms))


def channel_cost(groups: Sequence[Group]) -> Cost:
    """Count the channels of all groups."""
    return Cost(
        0.0,
        tuple(
            Term(1.0, (Extent(0.0, {g: group.channels / len(group.units)}),))
            for g, group in enumerate(groups)
        ),
    )


def allocate(
    errors: Sequence[Tensor], cost: Cost, most: float, *, multiple_of: Sequence[int]
) -> list[int]:
    """Choose how many units to keep of each group, so that the cost is at most `most`.

    Step by step, what is dropped next is where the error rises least for what it saves. The error
    of a group is looked at as far ahead as pays, so that a step which costs much and opens up a
    cheap stretch is found.

    Args:
        errors: For each group the error with 0, 1, … of its units kept.
        cost: What is to be saved.
        most: The cost to come down to.
        multiple_of: For each group, what its number of units should be a multiple of, 1 or more;
            a group of no more units stays whole.

    Returns:
        How many units are kept of each group, at least `multiple_of`; the least possible where
        `most` cannot be reached.
    """
    kept = [len(error) - 1 for error in errors]
    parts = [cost.of(group) for group in range(len(errors))]
    touched = [part.groups() for part in parts]
    steps: dict[int, tuple[float, int]] = {}
    left = cost.at(kept)
    while left > most:
        for group in range(len(errors)):
            if group not in steps:
                steps[group] = _next_step(
                    errors[group], parts[group], kept, group, multiple_of[group]
                )
        possible = [group for group, (_, to) in steps.items() if to < kept[group]]
        if not possible:
            break
        best = min(possible, key=lambda group: steps[group][0])
        left -= parts[best].at(kept)
        kept[best] = steps[best][1]
        left += parts[best].at(kept)
        for group in {best, *touched[best]}:
            steps.pop(group, None)
    return _filled_up(kept, errors, parts, most - cost.at(kept), multiple_of)


def _filled_up(
    kept: list[int],
    errors: Sequence[Tensor],
    parts: Sequence[Cost],
    spare: float,
    multiple_of: Sequence[int],
) -> list[int]:
    """Take back units for what the last step left of the budget, those that tell most for it."""
    while True:
        best, most_told, price = kept, 0.0, 0.0
        for group, error in enumerate(errors):
            more = [*kept]
            more[group] = min(kept[group] + multiple_of[group], len(error) - 1)
            spent = parts[group].at(more) - parts[group].at(kept)
            if more != kept and spent <= spare:
                told = float(error[kept[group]] - error[more[group]]) / max(spent, 1e-12)
                if told > most_told:
                    best, most_told, price = more, told, spent
        if best is kept:
            return kept
        kept, spare = best, spare - price


def _next_step(
    error: Tensor, part: Cost, kept: Sequence[int], group: int, multiple_of: int
) -> tuple[float, int]:
    """Return the least rise of the error for what is saved, and how many units are then kept."""
    now = kept[group]
    if now <= multiple_of:
        return 0.0, now
    one_less = [*kept]
    one_less[group] -= 1
    saved = part.at(kept) - part.at(one_less)  # nearly the same for every unit
    ahead = torch.arange(1, now)
    rates = (error[1:now] - error[now]) / (saved * (now - ahead))
    rate = float(rates.min())
    aim = 1 + int(rates.argmin())
    step = max(multiple_of, (len(error) - 1) // _STEPS)
    to = max(aim, now - step)
    to = max(to // multiple_of * multiple_of, multiple_of)
    return rate, to


def uniform_share(groups: Sequence[Group], share: float, multiple_of: Sequence[int]) -> list[int]:
    """Keep the same share of every group's units, rounded up, at least one."""
    kept = []
    for group, multiple in zip(groups, multiple_of, strict=True):
        units = len(group.units)
        wanted = -(-round(units * share * 1e6) // 10**6)
        kept.append(min(units, max(1, -(-wanted // multiple) * multiple)))
    return kept


def uniform(
    groups: Sequence[Group], cost: Cost, most: float, multiple_of: Sequence[int]
) -> list[int]:
    """Keep the same share of every group's units, the largest whose cost is at most `most`."""
    return _largest(lambda share: uniform_share(groups, share, multiple_of), cost, most, 1.0)


def _largest(kept: Callable[[float], list[int]], cost: Cost, most: float, high: float) -> list[int]:
    """Return what is kept at the largest number below `high` whose cost is at most `most`."""
    low = 0.0
    for _ in range(40):
        middle = (low + high) / 2
        if cost.at(kept(middle)) <= most:
            low = middle
        else:
            high = middle
    return kept(low)


def _extents(model: nn.Module, groups: Sequence[Group]) -> dict[AxisKey, Extent]:
    """Say how long each axis is that groups are on."""
    units: dict[AxisKey, dict[int, float]] = {}
    for g, group in enumerate(groups):
        for slot in group.slots:
            own = sum(channel >= 0 for channel in slot.channels)
            units.setdefault(slot.key, {})[g] = own / len(group.units)
    return {
        key: Extent(
            axis_size(model, key) - sum(n * len(groups[g].units) for g, n in each.items()), each
        )
        for key, each in units.items()
    }


def _weight_term(
    module: Any, name: str, extents: dict[AxisKey, Extent]
) -> tuple[float, tuple[Extent, ...]]:
    """Factor a layer's weight into the lengths of its axes."""
    depthwise = extents.get(AxisKey(name, "channel"))
    if depthwise is not None:
        return module.weight[0].numel(), (depthwise,)
    out, into = (
        (module.out_features, module.in_features)
        if isinstance(module, nn.Linear)
        else (module.out_channels, module.in_channels)
    )
    axes = (
        extents.get(AxisKey(name, "output"), Extent(out, {})),
        extents.get(AxisKey(name, "input"), Extent(into, {})),
    )
    return module.weight.numel() / (out * into), axes


def _module_terms(
    model: nn.Module, name: str, extents: dict[AxisKey, Extent]
) -> list[tuple[float, tuple[Extent, ...]]]:
    """Factor a module's parameters into the lengths of their axes."""
    module: Any = model.get_submodule(name)
    per_channel = AxisKey(name, "channel")
    if not reads_maps(module):
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        return [(own / axis_size(model, per_channel), (extents[per_channel],))]
    terms = [_weight_term(module, name, extents)]
    filters = extents.get(per_channel, extents.get(AxisKey(name, "output")))
    if module.bias is not None and filters is not None:
        terms.append((1.0, (filters,)))
    return terms
