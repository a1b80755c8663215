"""Channels that several modules share, and how they are cut out of a network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from convsim.kernels import is_convolution

Role = Literal["output", "input", "channel", "parameter"]
"""Whether an axis is a module's filters, what they read, one weight a channel (normalization,
depthwise convolution), or of a parameter that stands alone."""

OTHER = -1


class AxisKey(NamedTuple):
    """One axis of one module: its name, its role and, for a parameter alone, which axis."""

    name: str
    role: Role
    axis: int = 0


@dataclass(frozen=True)
class Slot:
    """An axis that holds channels of a group.

    Attributes:
        key: Which axis of which module.
        channels: For each index along it the group's channel, or -1 where another group's is.
    """

    key: AxisKey
    channels: tuple[int, ...]

    def places(self) -> tuple[Tensor, Tensor]:
        """List the channels that are here (m,), and where each is (m, t); t > 1 once flattened.

        Raises:
            ValueError: If some are here more often than others.
        """
        where: dict[int, list[int]] = {}
        for index, channel in enumerate(self.channels):
            if channel != OTHER:
                where.setdefault(channel, []).append(index)
        present = sorted(where)
        return torch.tensor(present), torch.tensor([where[channel] for channel in present])


@dataclass(frozen=True)
class Group:
    """Channels that are kept or dropped together wherever they are.

    Attributes:
        slots: The axes that hold them.
        units: Which channels only go together, as in the groups of a grouped convolution.
    """

    slots: tuple[Slot, ...]
    units: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """The name of the first layer that puts the channels out."""
        return self.producers[0].key.name

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return sum(map(len, self.units))

    @property
    def producers(self) -> tuple[Slot, ...]:
        """The axes of filters that put the channels out."""
        return tuple(slot for slot in self.slots if slot.key.role == "output")

    @property
    def putting_out(self) -> tuple[Slot, ...]:
        """The axes of whatever puts the channels out, or on: depthwise convolutions, norms."""
        return tuple(slot for slot in self.slots if slot.key.role in ("output", "channel"))

    @property
    def consumers(self) -> tuple[Slot, ...]:
        """The axes of filters that read the channels."""
        return tuple(slot for slot in self.slots if slot.key.role == "input")


KeptAxes = dict[AxisKey, tuple[int, ...]]
"""For each axis that was cut, the indices that are left of it."""


def kept_axes(kept: Iterable[tuple[Group, Collection[int]]]) -> KeptAxes:
    """Tell which indices of each axis are left if of each group only some channels are kept."""
    axes: dict[AxisKey, list[bool]] = {}
    for group, channels in kept:
        staying = {OTHER, *channels}
        for slot in group.slots:
            keep = axes.setdefault(slot.key, [True] * len(slot.channels))
            for index, channel in enumerate(slot.channels):
                keep[index] &= channel in staying
    return {
        key: tuple(index for index, stays in enumerate(keep) if stays)
        for key, keep in axes.items()
        if not all(keep)
    }


def cut_(model: nn.Module, axes: Mapping[AxisKey, Collection[int]]) -> None:
    """Cut a network's axes down to some of their indices, in place."""
    modules = dict(model.named_modules())
    for key, kept in axes.items():
        index = torch.as_tensor(list(kept))
        if key.role == "parameter":
            owner, _, name = key.name.rpartition(".")
            _cut_tensor(modules[owner], name, key.axis, index)
        else:
            _cut_module(modules[key.name], key.role, index)


def axis_size(model: nn.Module, key: AxisKey) -> int:
    """Return how long an axis is."""
    if key.role == "parameter":
        return model.get_parameter(key.name).shape[key.axis]
    module = model.get_submodule(key.name)
    return int(getattr(module, _attributes(module, key.role)[0]))


def is_depthwise(module: nn.Module) -> bool:
    """Tell whether a convolution has one filter for each channel that it reads."""
    if not is_convolution(module):
        return False
    convolution: Any = module
    return bool(convolution.groups == convolution.in_channels == convolution.out_channels > 1)


PER_CHANNEL: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.modules.batchnorm._BatchNorm: (
        "num_features",
        ("weight", "bias", "running_mean", "running_var"),
    ),
    nn.modules.instancenorm._InstanceNorm: (
        "num_features",
        ("weight", "bias", "running_mean", "running_var"),
    ),
    nn.PReLU: ("num_parameters", ("weight",)),
}
"""Modules with a weight for each channel: the attribute that counts them, and their tensors."""


def _attributes(module: nn.Module, role: Role) -> tuple[str, ...]:
    """Name the attributes that say how long an axis is."""
    if isinstance(module, nn.Linear):
        return ("out_features",) if role == "output" else ("in_features",)
    if is_convolution(module):
        own = {"output": ("out_channels",), "input": ("in_channels",)}
        return own.get(role, ("out_channels", "in_channels", "groups"))
    return (next(a for kind, (a, _) in PER_CHANNEL.items() if isinstance(module, kind)),)


def _cut_module(module: nn.Module, role: Role, index: Tensor) -> None:
    for name in _attributes(module, role):
        setattr(module, name, len(index))
    if isinstance(module, nn.Linear):
        _cut_tensor(module, "weight", 0 if role == "output" else 1, index)
    elif is_convolution(module):
        _cut_convolution(module, role, index)
    else:
        names = next(n for kind, (_, n) in PER_CHANNEL.items() if isinstance(module, kind))
        for name in names:
            _cut_tensor(module, name, 0, index)
        return
    if role != "input":
        _cut_tensor(module, "bias", 0, index)


def _cut_convolution(module: Any, role: Role, index: Tensor) -> None:
    """Cut a weight (out, in/groups, …), transposed (in, out/groups, …).

    Of a grouped convolution every group keeps the same relative indices, so the axis that holds
    only one group's keeps those of the first.
    """
    whole = "input" if module.transposed else "output"
    if role not in (whole, "channel"):
        index = index[: len(index) // module.groups]
    _cut_tensor(module, "weight", 0 if role in (whole, "channel") else 1, index)


def _cut_tensor(module: nn.Module, name: str, axis: int, index: Tensor) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    with torch.no_grad():
        cut = tensor.index_select(axis, index.to(tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        cut = nn.Parameter(cut, requires_grad=tensor.requires_grad)
    setattr(module, name, cut)
