"""Feature maps at sampled positions, whose gradient enters that of the maps in place.

A penalty reads S positions of maps that may have a hundred thousand. Plain indexing would send back
a tensor of zeros as large as the maps, to be written, filled and added at every layer. Here the
gradient of the samples waits until that of the maps arrives from the loss, and is added to it at
the S positions. Both are one backward pass of autograd's, so whatever is done to the loss' gradient
(a scale, an accumulation, an average over ranks) is done to the penalty's.

Shape suffixes: N images, M maps, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convsim.caching import kept, tensors_are_real
from convsim.kernels.windows import spread


def sample_maps(maps_NMx: Tensor, count: int) -> tuple[Tensor, Arrival | None]:
    """Read a layer's maps (N, M, …) at positions spread evenly over images and pixels.

    Nothing is drawn at random: a training batch is shuffled already, and training stays
    reproducible.

    Args:
        maps_NMx: The maps.
        count: At how many positions; at all if there are no more.

    Returns:
        (S, M) of the maps' dtype, differentiable, also twice; and where their gradient meets that
        of the maps, None where it is sent back as by indexing.
    """
    places = _positions(maps_NMx.shape[:1] + maps_NMx.shape[2:], count, maps_NMx.device)
    plain = torch.compiler.is_compiling() or not tensors_are_real()
    if plain or not (torch.is_grad_enabled() and maps_NMx.requires_grad):
        return _read(maps_NMx, places), None
    arrival = Arrival(maps_NMx, places)
    maps_NMx.register_hook(arrival)
    samples_SM: Tensor = _Samples.apply(maps_NMx, places, arrival)  # type: ignore[no-untyped-call]
    return samples_SM, arrival


def _read(maps_NMx: Tensor, places: _Places) -> Tensor:
    pixels_NxM = maps_NMx.movedim(1, -1)
    if maps_NMx.is_cuda and pixels_NxM.is_contiguous():  # one kernel less where launches count
        return pixels_NxM.view(-1, pixels_NxM.shape[-1]).index_select(0, places.flat)
    return pixels_NxM[places.axes]


def _add_(gradient_NMx: Tensor, places: _Places, own_SM: Tensor) -> None:
    """Add samples' gradient to that of the maps: positions are distinct."""
    pixels_NxM = gradient_NMx.movedim(1, -1)
    if gradient_NMx.is_cuda and pixels_NxM.is_contiguous():
        pixels_NxM.view(-1, pixels_NxM.shape[-1]).index_add_(0, places.flat, own_SM)
    else:  # faster than to accumulate
        pixels_NxM[places.axes] = pixels_NxM[places.axes] + own_SM


class _Places(NamedTuple):
    """Positions of (N, …): counted through, and one index by axis."""

    flat: Tensor
    axes: tuple[Tensor, ...]


class _Samples(torch.autograd.Function):
    """Read samples, and leave their gradient where that of the maps will pass."""

    @staticmethod
    def forward(ctx: Any, maps_NMx: Tensor, places: _Places, arrival: Arrival) -> Tensor:
        ctx.arrival = arrival  # not saved as tensors: activation checkpointing counts those
        return _read(maps_NMx, places)

    @staticmethod
    def backward(ctx: Any, gradient_SM: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.arrival.wait_for(gradient_SM), None, None


class Arrival:
    """What is called when the gradient of maps is complete, before it goes on to their layer.

    Attributes:
        passed: Whether it has been called.
        when_passed: Called then.
    """

    passed = False
    when_passed: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, maps_NMx: Tensor, places: _Places) -> None:
        self._shape, self._dtype, self._device = maps_NMx.shape, maps_NMx.dtype, maps_NMx.device
        self._places = places
        self._waiting_SM: Tensor | None = None

    def wait_for(self, gradient_SM: Tensor) -> Tensor | None:
        """Keep the samples' gradient; with create_graph=True, return it as one of the maps."""
        if torch.is_grad_enabled():
            zeros_NMx = gradient_SM.new_zeros(self._shape)
            rows_NxM = zeros_NMx.movedim(1, -1).index_put(self._places.axes, gradient_SM)
            return rows_NxM.movedim(-1, 1).to(self._dtype)
        waiting_SM, self._waiting_SM = self._waiting_SM, gradient_SM
        if waiting_SM is not None:  # two backward passes at once
            self._waiting_SM = waiting_SM + gradient_SM
        return None

    def __call__(self, gradient_NMx: Tensor | None) -> Tensor | None:
        """Add what waits; None where the loss does not reach the maps."""
        self.passed = True
        self.when_passed()
        own_SM, self._waiting_SM = self._waiting_SM, None
        if own_SM is None:
            return None
        if gradient_NMx is None:
            gradient_NMx = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
        elif not _is_nobody_elses(gradient_NMx):
            gradient_NMx = gradient_NMx.clone()
        _add_(gradient_NMx, self._places, own_SM.to(gradient_NMx.dtype))
        return gradient_NMx


def _is_nobody_elses(gradient: Tensor) -> bool:
    """Tell whether a gradient can be written to: autograd may hand one tensor to two layers.

    A residual sum does so, and views (of a concatenation, of an expanded scalar) share memory.
    """
    if 0 in gradient.stride() or type(gradient) is not Tensor:
        return False
    alone = _references_of_one_alone()
    return alone is not None and _references(gradient) == alone


def _references(tensor: Tensor) -> tuple[int, int]:
    """Count who holds a tensor, and who its memory."""
    own: Any = tensor
    storage = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return own._use_count(), storage


@cache
def _references_of_one_alone() -> tuple[int, int] | None:
    """Count them for a gradient that autograd has made for one hook alone; None if torch cannot."""
    found: list[tuple[int, int]] = []

    def look(gradient: Tensor) -> None:
        found.append(_references(gradient))

    try:
        with torch.enable_grad(), torch.inference_mode(False):
            leaf = torch.ones(2, device="cpu", requires_grad=True)
            watched = leaf * 2
            watched.register_hook(look)
            (watched * leaf).sum().backward()
    except AttributeError:
        return None
    return found[0]


@kept(256)
def _positions(sizes: tuple[int, ...], count: int, device: torch.device) -> _Places:
    """Choose distinct positions of (N, …)."""
    flat = spread(count, prod(sizes))
    index = tuple(axis.to(device) for axis in torch.unravel_index(flat, sizes))
    return _Places(flat.to(device), index)
