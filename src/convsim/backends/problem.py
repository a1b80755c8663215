"""What every backend is asked: the similarity of some layers, and its gradient added in place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from convsim.caching import kept
from convsim.kernels import KernelBank
from convsim.similarity import Channels, Pairs, Reduction, Scale, tap_pair_classes


class Options(NamedTuple):
    """The options of `convsim.convolutional_similarity` that choose the form, in their order."""

    pairs: Pairs
    channels: Channels
    scale: Scale
    reduction: Reduction


@dataclass(frozen=True)
class HalfClasses:
    """The classes of tap pairs with (u, v) and (v, u) in one, as autocorrelation is symmetric.

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


def half_classes(bank: KernelBank) -> HalfClasses:
    """Look up the classes of a bank's tap pairs."""
    return _half_classes(bank.kernel, bank.stride, bank.dilation, bank.transposed)


@kept(64)
def _half_classes(
    kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], transposed: bool
) -> HalfClasses:
    index, full = tap_pair_classes(kernel, stride, dilation, transposed)
    taps = round(len(index) ** 0.5)
    index_nn = index.reshape(taps, taps)
    mirror = torch.full((full + 1,), full, device="cpu")
    mirror[index_nn.flatten()] = index_nn.mT.flatten()
    first = torch.minimum(torch.arange(full + 1, device="cpu"), mirror)
    kept, half = first.unique(return_inverse=True)  # sorted: "left out" stays last
    count = len(kept) - int(full in index) if full in index else len(kept) - 1
    multiplicity = torch.bincount(half[:full], minlength=count)[:count].double()
    return HalfClasses(half[index].int().contiguous(), multiplicity, count)
