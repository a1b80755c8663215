"""Which channels of a network are kept: what a smaller network is rebuilt from."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from convsim import strict_json
from convsim.errors import ConvsimError, DataError
from convsim.shrinking.channels import AxisKey, KeptAxes, Role, axis_size, cut_
from convsim.version import __version__

FORMAT = "convsim shrink plan 1"


@dataclass(frozen=True)
class Plan:
    """Which indices of each axis of a network are kept.

    Attributes:
        model: Name of the network's class.
        axes: For each axis that was cut, what is left of it.
        shapes: The shape of every parameter and buffer of the whole network.
    """

    model: str
    axes: KeptAxes
    shapes: Mapping[str, tuple[int, ...]]

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a copy of the whole network that is cut, without compensation."""
        small = copy.deepcopy(model)
        cut_(small, self.axes)
        return small

    def require_shapes(self, model: nn.Module) -> None:
        """Refuse a network that is another than the plan was made for.

        Raises:
            ConvsimError: If a name or a shape in its state differs.
        """
        own = shapes_of(model)
        names = sorted({*own, *self.shapes})
        for name in names:
            if own.get(name) != self.shapes.get(name):
                raise ConvsimError(
                    f"The plan was made for another network ({self.model}) than this "
                    f"{type(model).__name__}: {name!r} has shape {self.shapes.get(name, 'none')} "
                    f"there and {own.get(name, 'none')} here. Build the model with the options of "
                    "the original."
                )

    def to_json(self) -> str:
        """Write the plan, one axis a line."""
        axes = [[*key, list(kept)] for key, kept in self.axes.items()]
        content = {
            "format": FORMAT,
            "convsim": __version__,
            "model": self.model,
            "axes": axes,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan.

        Raises:
            DataError: If it is damaged or none.
        """
        try:
            return _plan(strict_json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"This is not a plan of convsim.shrink, or a damaged one: {error}. Take the "
                "plan.json that Shrunk.save wrote."
            ) from error


def plan_of(model: nn.Module, axes: KeptAxes) -> Plan:
    """Make the plan of cutting a whole network."""
    return Plan(type(model).__name__, axes, shapes_of(model))


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of everything in a network's state."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def require_axes(model: nn.Module, plan: Plan) -> None:
    """Refuse a plan whose axes the network does not have.

    Raises:
        DataError: If one is missing, or shorter than the plan says.
    """
    for key, kept in plan.axes.items():
        try:
            size = axis_size(model, key)
        except (AttributeError, IndexError, StopIteration) as error:
            raise DataError(f"The plan is damaged: the network has no axis {key}.") from error
        if not kept or kept[-1] >= size:
            raise DataError(
                f"The plan is damaged: of {key.name!r} ({key.role}), which has {size} channels, it "
                f"keeps {list(kept[:3])} … {list(kept[-1:])}."
            )


def _plan(content: Any) -> Plan:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r:.80} instead of {FORMAT!r}")
    axes = dict(_axis(axis) for axis in content["axes"])
    if len(axes) != len(content["axes"]):
        raise ValueError("an axis that comes twice")
    shapes = {
        str(name): tuple(_count(size) for size in shape)
        for name, shape in content["shapes"].items()
    }
    return Plan(str(content["model"]), axes, shapes)


def _axis(content: Any) -> tuple[AxisKey, tuple[int, ...]]:
    name, role, axis, kept = content
    if role not in get_args(Role):
        raise ValueError(f"a role {role!r:.80}")
    indices = tuple(_count(index) for index in kept)
    if list(indices) != sorted(set(indices)):
        raise ValueError(f"indices of {name!r:.80} that do not rise")
    return AxisKey(str(name), role, _count(axis)), indices


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.20} where a count belongs")
    return value
