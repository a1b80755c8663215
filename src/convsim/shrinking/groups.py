"""Which channels of a network belong together, found by Torch-Pruning's dependency graph.

Torch-Pruning (Fang et al., DepGraph, CVPR 2023) traces the network by autograd. What it finds is
taken apart into axes here; cutting and checking them needs it no more.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from convsim.errors import ConvsimError, require
from convsim.kernels import is_convolution
from convsim.kernels.computed_weight import convolved_weight, may_compute_weight
from convsim.shrinking.channels import (
    OTHER,
    PER_CHANNEL,
    AxisKey,
    Group,
    Role,
    Slot,
    axis_size,
    is_depthwise,
)


@dataclass(frozen=True)
class LeftWhole:
    """Channels that stay as they are, and why."""

    layer: str
    reason: str


class _Unfit(Exception):  # noqa: N818 - a finding, no error
    """Why channels cannot be cut."""


def channel_groups(model: nn.Module, inputs: Tensor) -> tuple[list[Group], list[LeftWhole]]:
    """Find the channels of a network that are tied together.

    Args:
        model: The network; it is copied for tracing.
        inputs: A batch that it accepts.

    Returns:
        The groups, in the order in which the network computes them, and the layers whose outputs
        cannot be cut. No group has been checked yet.

    Raises:
        MissingExtraError: If Torch-Pruning is not installed.
        ConvsimError: If Torch-Pruning cannot trace the network at all.
    """
    pruning = require("torch_pruning", "shrink")
    with _reshapes_uncounted():
        return _read(pruning, model, inputs)


def _read(pruning: Any, model: nn.Module, inputs: Tensor) -> tuple[list[Group], list[LeftWhole]]:
    traced = copy.deepcopy(model).eval().requires_grad_(True)
    calls: dict[nn.Module, int] = {}
    handles = [
        module.register_forward_hook(lambda m, *_: calls.update({m: calls.get(m, 0) + 1}))
        for module in traced.modules()
    ]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = pruning.DependencyGraph().build_dependency(
                traced,
                inputs,
                forward_fn=lambda network, batch: network(batch),
                output_transform=lambda output: [
                    leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)
                ],
                verbose=False,
            )
    except Exception as error:
        raise ConvsimError(
            f"Torch-Pruning cannot trace the model ({type(model).__name__}): "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return _Reader(traced, graph, calls).read()


@contextmanager
def _reshapes_uncounted() -> Iterator[None]:
    """Let Torch-Pruning go on where it divides by the channels of a reshape, having counted none.

    Its 1.6.1 does so after three shuffles of channels in a row. Groups that go through the reshape
    are then mistaken, if at all followed, which the check against zeroed channels finds.
    """
    mapping: Any = importlib.import_module("torch_pruning.dependency.index_mapping")
    update = mapping.update_reshape_index_mapping

    def try_to_update(graph: Any, node: Any) -> None:
        with suppress(ZeroDivisionError):
            update(graph, node)

    mapping.update_reshape_index_mapping = try_to_update
    try:
        yield
    finally:
        mapping.update_reshape_index_mapping = update


class _Reader:
    """Reads groups out of a dependency graph."""

    def __init__(self, model: nn.Module, graph: Any, calls: dict[nn.Module, int]) -> None:
        self.graph = graph
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.order = {module: place for place, module in enumerate(calls)}
        self.calls = calls
        self.claimed: set[tuple[AxisKey, int]] = set()
        self.shared = _shared_parameters(model)

    def read(self) -> tuple[list[Group], list[LeftWhole]]:
        groups: list[Group] = []
        left: list[LeftWhole] = []
        roots = [m for m in self.graph.module2node if self._is_root(m)]
        seen: set[nn.Module] = set()
        for root in sorted(roots, key=lambda module: self.order.get(module, 0)):
            if root in seen:
                continue
            try:
                groups.append(self._group(root, seen))
            except _Unfit as unfit:
                left.append(LeftWhole(self.names[root], str(unfit)))
            except Exception as error:  # whatever Torch-Pruning stumbles over
                reason = f"Torch-Pruning cannot follow it ({type(error).__name__}: {error})"
                left.append(LeftWhole(self.names[root], reason))
        return groups, left

    def _is_root(self, module: Any) -> bool:
        known = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Module) and is_convolution(module)
        )
        return known and module in self.names and not is_depthwise(module)

    def _group(self, root: nn.Module, seen: set[nn.Module]) -> Group:
        count = int(self.graph.get_out_channels(root))
        items = list(self._items(root, range(count)))
        seen.update(item.dep.target.module for item in items if self._role(item) == "output")
        slots = tuple(slot for item in items if (slot := self._slot(item)) is not None)
        group = Group(slots, ())
        if not group.consumers:
            raise _Unfit("no layer reads them that could make up for their loss")
        for slot in group.consumers:
            counts = {slot.channels.count(channel) for channel in {*slot.channels} - {OTHER}}
            if len(counts) > 1:
                raise _Unfit(f"{slot.key.name!r} reads some of them more often than others")
        places = {
            (slot.key, i) for slot in slots for i, c in enumerate(slot.channels) if c != OTHER
        }
        if places & self.claimed:
            raise _Unfit("they are tied to channels in more than one way")
        ties = _Ties(count)
        for slot in slots:
            self._tie_within(slot, ties)
        self._tie_across(root, count, slots, ties)
        units = ties.units()
        if len(units) < 2:
            raise _Unfit("all its channels are tied to one another")
        self.claimed |= places
        return Group(slots, units)

    def _items(self, root: nn.Module, channels: Any) -> Iterator[Any]:
        pruner = self.graph.get_pruner_of_module(root)
        yield from self.graph.get_pruning_group(root, pruner.prune_out_channels, list(channels))

    def _role(self, item: Any) -> Role | None:
        """Tell what an item of a group is, None if it is no module."""
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            return "parameter"
        if module not in self.names:
            return None
        if is_depthwise(module) or isinstance(module, tuple(PER_CHANNEL)):
            return "channel"
        if isinstance(module, nn.Linear) or is_convolution(module):
            out = self.graph.is_out_channel_pruning_fn(item.dep.handler)
            return "output" if out else "input"
        return None

    def _slot(self, item: Any) -> Slot | None:
        module = item.dep.target.module
        role = self._role(item)
        if role is None:
            if type(module).__name__ == "_OutputOp":
                raise _Unfit("the network puts them out")
            if module in self.names and any(True for _ in module.parameters(recurse=False)):
                raise _Unfit(
                    f"{self.names[module]!r} ({type(module).__name__}) works across channels"
                )
            return None
        if role == "parameter":
            key = AxisKey(self._parameter_name(module), role, int(item.dep.target.pruning_dim))
        elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return None
        else:
            self._require_plain(module, role)
            key = AxisKey(self.names[module], role)
        channels = [OTHER] * axis_size(self.model, key)
        for index, channel in zip(item.idxs, item.root_idxs, strict=True):
            channels[index] = channel
        return Slot(key, tuple(channels))

    def _parameter_name(self, parameter: nn.Parameter) -> str:
        return next(name for name, one in self.model.named_parameters() if one is parameter)

    def _require_plain(self, module: nn.Module, role: Role) -> None:
        """Refuse a module whose weights are not its own alone, or not as they stand."""
        name = self.names[module]
        if self.calls.get(module, 0) > 1:
            raise _Unfit(f"{name!r} is used {self.calls[module]} times in one forward pass")
        if any(id(parameter) in self.shared for parameter in module.parameters(recurse=False)):
            raise _Unfit(f"{name!r} shares a parameter with another module")
        computed = parametrize.is_parametrized(module) or (
            is_convolution(module) and role == "input" and _makes_weight(module)
        )
        if computed:
            raise _Unfit(f"{name!r} computes its weight from other parameters")

    def _tie_within(self, slot: Slot, ties: _Ties) -> None:
        """Tie what a grouped convolution has at the same place in each of its groups."""
        module: Any = dict(self.model.named_modules()).get(slot.key.name)
        groups = getattr(module, "groups", 1) if slot.key.role in ("output", "input") else 1
        if groups == 1:
            return
        if OTHER in slot.channels:
            raise _Unfit(f"{slot.key.name!r} has groups that hold other channels as well")
        each = len(slot.channels) // groups
        for index, channel in enumerate(slot.channels):
            ties.tie(channel, slot.channels[index % each])

    def _tie_across(
        self, root: nn.Module, count: int, slots: tuple[Slot, ...], ties: _Ties
    ) -> None:
        """Tie channels that can only go together, as where a map is added to another of its layer.

        Cutting some shows whether others come along.
        """
        channel_at = {(slot.key, i): c for slot in slots for i, c in enumerate(slot.channels)}

        def reached(channels: list[int]) -> set[int]:
            found = set()
            for item in self._items(root, channels):
                if (slot := self._slot(item)) is not None:
                    found |= {channel_at[slot.key, index] for index in item.idxs}
            return found - {OTHER}

        if all(reached(half) <= set(half) for half in self._halves(count)):
            return
        for channel in range(count):
            for other in reached([channel]):
                ties.tie(channel, other)

    def _halves(self, count: int) -> list[list[int]]:
        """List halves of the channels, of which one parts any two that may be tied.

        Two numbers differ in a bit. Where no tensor is taken apart, ties are rare, and one half
        without a pattern is enough for a network as deep as DenseNet not to take minutes.
        """
        apart = {"_SplitOp", "_UnbindOp", "_SliceOp", "_ExpandOp"}
        if any(type(module).__name__ in apart for module in self.graph.module2node):
            bits = range((count - 1).bit_length())
            return [[c for c in range(count) if c >> bit & 1] for bit in bits]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        return [order[: count // 2]] if count > 1 else []


class _Ties:
    """Which of some channels go together (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def tie(self, first: int, second: int) -> None:
        self._parent[self._root(first)] = self._root(second)

    def units(self) -> tuple[tuple[int, ...], ...]:
        together: dict[int, list[int]] = {}
        for channel in range(len(self._parent)):
            together.setdefault(self._root(channel), []).append(channel)
        return tuple(map(tuple, together.values()))

    def _root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            channel = self._parent[channel]
        return channel


def _makes_weight(module: nn.Module) -> bool:
    """Tell whether a convolution's forward convolves with something else than its weight."""
    if not may_compute_weight(module):
        return False
    try:
        return "weight" not in module._parameters or not convolved_weight("", module).is_own
    except ConvsimError:
        return True


def _shared_parameters(model: nn.Module) -> set[int]:
    """Find parameters that several modules hold."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {key for key, count in holders.items() if count > 1}
