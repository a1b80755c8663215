"""What every backend is asked: the similarity of some layers, and its gradient added in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from convsim.caching import kept
from convsim.kernels import Geometry, KernelBank
from convsim.similarity import Options
from convsim.similarity.convolutional import tap_pair_classes

_Item = TypeVar("_Item")


class Job(NamedTuple):
    """One layer, and where its gradient is added.

    Attributes:
        bank: The layer's filters.
        gradient: (G, M, C, k) of the filters' dtype, of any strides; None for the value alone.
    """

    bank: KernelBank
    gradient: Tensor | None


def together(
    items: Sequence[_Item],
    alike: Callable[[_Item], Any],
    compute: Callable[[Any, list[_Item]], Sequence[Tensor]],
) -> list[Tensor]:
    """Compute items that are alike in one call each, and return the results in the items' order."""
    found: dict[int, Tensor] = {}
    for key, mine in places_of(map(alike, items)).items():
        found.update(zip(mine, compute(key, [items[place] for place in mine]), strict=True))
    return [found[place] for place in range(len(items))]


def places_of(kinds: Iterable[Any]) -> dict[Any, list[int]]:
    """List where each kind stands."""
    places: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    return places


class Backend(Protocol):
    """A way to do jobs; the jobs of one call share their dtype and device."""

    def serves(self, job: Job, options: Options) -> bool:
        """Tell whether this backend can do a job."""

    def add_gradients_(self, jobs: Sequence[Job], factor: float, options: Options) -> list[Tensor]:
        """Add factor · gradient of each bank's similarity; return the similarities."""


@dataclass(frozen=True)
class HalfClasses:
    """The classes of tap pairs, (u, v) and (v, u) as one: autocorrelation is symmetric.

    Attributes:
        pair_class: (n²,) int32, the class of each pair of taps, `count` for a pair left out.
        multiplicity: (count,) float64, how many of the full classes each one stands for: 1 or 2.
        count: The number of classes, 13 for a 3×3 kernel where there are 25 full ones.
    """

    pair_class: Tensor
    multiplicity: Tensor
    count: int


def merges_taps(tensor: Tensor) -> bool:
    """Tell whether one stride leads through all taps of (G, M, C, k): flattening makes no copy."""
    axes = zip(tensor.shape[3:], tensor.stride()[3:], strict=True)
    spatial = [(size, step) for size, step in axes if size > 1]
    return all(outer == size * inner for (_, outer), (size, inner) in pairwise(spatial))


@kept(64)
def half_classes(geometry: Geometry) -> HalfClasses:
    """Look up the half classes of a kernel's tap pairs."""
    index, full = tap_pair_classes(geometry)
    index_nn = index.reshape(geometry.taps, geometry.taps)
    # Class of (u, v) → class of (v, u); "left out", the last one, mirrors itself.
    mirror = torch.full((full + 1,), full, device="cpu")
    mirror[index_nn.flatten()] = index_nn.mT.flatten()
    first = torch.minimum(torch.arange(full + 1, device="cpu"), mirror)
    distinct, half = first.unique(return_inverse=True)  # sorted: "left out" stays last
    count = len(distinct) - 1
    multiplicity = torch.bincount(half[:full], minlength=count)[:count].double()
    return HalfClasses(half[index].int().contiguous(), multiplicity, count)
