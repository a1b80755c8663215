"""What shrinking a network changed, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


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
    """A dropped map, and the kept maps that determine most of it.

    Attributes:
        map: Its number in the original layer.
        into: Numbers of kept maps with their factors, the largest share first.
    """

    map: int
    into: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class FoldPicture:
    """A dropped map, as its first consumer reads it from the first calibration image.

    Attributes:
        map: Its number in the original layer.
        lost: The map, (h, w).
        told: What the kept ones tell of it.
        into: The kept ones that tell most of it, as in `FoldedMap`.
    """

    map: int
    lost: Tensor
    told: Tensor
    into: tuple[Tensor, ...]


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
        reason: Why all maps stay, if they cannot be cut.
        folded: The maps that are gone, and what they are told by.
        pictures: Those of them with the largest mean square, at most eight, to look at; none where
            maps have one pixel. Left out of JSON.
    """

    name: str
    kind: str
    channels: Before
    parameters: Before
    macs: Before
    error: float
    reason: str
    folded: tuple[FoldedMap, ...]
    pictures: tuple[FoldPicture, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class NetworkChange:
    """What shrinking did to a network.

    Attributes:
        model: Name of its class.
        images: How many calibration images there were.
        parameters: All of the network's.
        macs: Multiplications of its convolutions and linear layers for one image.
        output_error: Mean square difference of the two networks' outputs on calibration images,
            relative to the variance of the original's. Other images, which nothing was fitted to,
            have more: the fewer calibration images the more.
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
