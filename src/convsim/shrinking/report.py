"""What shrinking a network did, layer by layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from convsim.version import __version__

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Before:
    """A count before and after."""

    before: int
    after: int

    @property
    def share(self) -> float:
        """What is left, as a share; 1 of nothing."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True)
class FoldedMap:
    """A map that is gone, and the kept ones that tell most of it.

    Attributes:
        map: Its number in the original layer.
        into: Numbers of kept maps with their factors, the largest share first.
    """

    map: int
    into: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer.

    Attributes:
        name: The layer's name in the model.
        kind: Its type.
        channels: Its filters.
        parameters: Of its weight and bias.
        macs: Multiplications for one image.
        error: Mean square of what the consumers of its maps lose in their outputs by the maps that
            are gone, relative to those outputs' variance, summed over the consumers; before later
            layers repair any of it. NaN where all maps stay.
        reason: Why all maps stay, if something stands against cutting them.
        folded: The maps that are gone, and what they are told by.
    """

    name: str
    kind: str
    channels: Before
    parameters: Before
    macs: Before
    error: float
    reason: str
    folded: tuple[FoldedMap, ...]


@dataclass(frozen=True)
class ShrinkReport:
    """What shrinking did to a network.

    Attributes:
        model: Name of its class.
        images: How many calibration images there were.
        parameters: All of the network's.
        macs: Multiplications of its convolutions and linear layers for one image.
        output_error: Mean square difference of the two networks' outputs on calibration images,
            relative to the variance of the original's.
        layers: Its convolutions and linear layers, in the order of computation.
    """

    model: str
    images: int
    parameters: Before
    macs: Before
    output_error: float
    layers: tuple[LayerChange, ...]

    def __getitem__(self, name: str) -> LayerChange:
        """Return the layer of a name."""
        return next(layer for layer in self.layers if layer.name == name)

    def to_json(self) -> str:
        """Write everything as JSON; numbers that are undefined are null."""
        return json.dumps({"convsim": __version__, **_plain(asdict(self))}, allow_nan=False)

    def to_html(self) -> str:
        """Make one self-contained HTML page."""
        from convsim.shrinking.page import shrink_page  # noqa: PLC0415 - needed here alone

        return shrink_page(self)

    def __rich__(self) -> Table:
        """Show it as a table (needs the extra ``report``)."""
        from convsim.shrinking.table import shrink_table  # noqa: PLC0415 - needs rich

        return shrink_table(self)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
