"""Feature maps at sampled positions, whose gradient enters that of the maps in place.

A penalty reads S positions of maps that may have a hundred thousand. Plain indexing would send back
a tensor of zeros as large as the maps, to be written, filled and added at every layer. Here the
gradient of the samples waits until that of the maps arrives from the loss, and is added to it at
the S positions. Both are one backward pass of autograd's, so whatever is done to the loss' gradient
(a scale, an accumulation, an average over ranks) is done to the penalty's.

Shape suffixes: N images, M maps, S samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convsim.caching import kept, tensors_are_real
from convsim.kernels.windows import spread
from convsim.precision import exact_dtype


def sample_maps(
    maps_NMx: Tensor, count: int, balance: Balance | None = None
) -> tuple[Tensor, Arrival | None]:
    """Read a layer's maps (N, M, …) at positions spread evenly over images and pixels.

    Nothing is drawn at random: a training batch is shuffled already, and training stays
    reproducible.

    Args:
        maps_NMx: The maps.
        count: At how many positions; at all if there are no more.
        balance: Where to weigh gradients instead of adding them, while it is pending.

    Returns:
        (S, M) of the maps' dtype, differentiable, also twice; and where their gradient meets that
        of the maps, None where it is sent back as by indexing.
    """
    places = _places(maps_NMx, count)
    recorded = torch.is_grad_enabled() and maps_NMx.requires_grad
    if not recorded or not _can_meet(maps_NMx):
        return _read(maps_NMx, places), None
    arrival = Arrival(maps_NMx, places, balance)
    with torch.autograd._unsafe_preserve_version_counter(maps_NMx):  # type: ignore[attr-defined]
        # No number is changed.
        _Meeting.apply(maps_NMx, arrival)  # type: ignore[no-untyped-call]
    samples_SM: Tensor = _Samples.apply(maps_NMx, places, arrival)  # type: ignore[no-untyped-call]
    return samples_SM, arrival


def _can_meet(maps_NMx: Tensor) -> bool:
    """Tell whether a node can be put behind maps; autograd copies views, and leaves have none."""
    return tensors_are_real() and not maps_NMx.is_leaf and not maps_NMx._is_view()


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


class _Meeting(torch.autograd.Function):
    """Stand behind maps, in place, and add what waits to the gradient that arrives at them."""

    @staticmethod
    def forward(ctx: Any, maps_NMx: Tensor, arrival: Arrival) -> Tensor:
        ctx.mark_dirty(maps_NMx)
        ctx.set_materialize_grads(False)
        ctx.arrival = arrival
        return maps_NMx

    @staticmethod
    def backward(ctx: Any, gradient_NMx: Tensor | None) -> tuple[Tensor | None, None]:
        held = None if gradient_NMx is None else _holders(gradient_NMx)
        return ctx.arrival.join(gradient_NMx, held), None


class Balance:
    """The squared lengths of the loss' gradient and of the penalty's, summed over maps.

    Attributes:
        pending: Whether to weigh, and add nothing.
    """

    def __init__(self, pending: bool) -> None:
        self.pending = pending
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._squares: list[tuple[Tensor, ...]] = []

    @property
    def weighed(self) -> bool:
        """Whether there is anything to compare."""
        return bool(self._squares)

    @property
    def shared(self) -> bool:
        """Whether other ranks weigh too, and have to be asked."""
        return torch.distributed.is_available() and torch.distributed.is_initialized()

    def weigh(self, loss: Tensor, penalty: Tensor) -> None:
        """Add the gradients at one layer's maps."""
        exact = exact_dtype(loss.device)
        squares = (torch.linalg.vector_norm(g, dtype=exact).square() for g in (loss, penalty))
        self._squares.append((*squares,))

    def lengths(self) -> tuple[float, float]:
        """Return the two lengths, over all ranks."""
        device = self._squares[0][0].device
        sums = torch.stack([torch.stack(pair).to(device) for pair in self._squares]).sum(0)
        if self.shared:
            torch.distributed.all_reduce(sums)
        loss, penalty = sums.sqrt().tolist()
        return loss, penalty


class Arrival:
    """Where the gradient of samples waits for that of the maps, before both go on to their layer.

    Attributes:
        when_passed: Returns what is to be called when they have met, if that still exists.
    """

    when_passed: Callable[[], Callable[[], object] | None] = staticmethod(lambda: None)

    def __init__(self, maps_NMx: Tensor, places: _Places, balance: Balance | None) -> None:
        self._shape, self._dtype, self._device = maps_NMx.shape, maps_NMx.dtype, maps_NMx.device
        self._places, self._balance = places, balance
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

    def join(self, gradient_NMx: Tensor | None, held: _Holders | None) -> Tensor | None:
        """Add what waits to a gradient, which is None where the loss does not reach the maps.

        Args:
            gradient_NMx: The gradient of the maps.
            held: Who holds it.
        """
        if (call := self.when_passed()) is not None:
            call()
        own_SM, self._waiting_SM = self._waiting_SM, None
        if own_SM is None:
            return gradient_NMx
        if self._balance is not None and self._balance.pending:
            if gradient_NMx is not None:
                self._balance.weigh(gradient_NMx, own_SM)
            return gradient_NMx
        if gradient_NMx is None:
            gradient_NMx = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
        elif held != _holders_of_one_alone() or 0 in gradient_NMx.stride():
            gradient_NMx = gradient_NMx.clone()
        _add_(gradient_NMx, self._places, own_SM.to(gradient_NMx.dtype))
        return gradient_NMx


class _Holders(NamedTuple):
    """How many hold a gradient, so as to tell whether it can be written to.

    Autograd may hand one tensor to two layers, as at a residual sum; views share memory; and a hook
    may have kept it.
    """

    by_name: int
    as_tensor: int
    its_memory: int


def _holders(gradient: Tensor) -> _Holders | None:
    """Count them; None if torch cannot, or for a subclass, which may hold others."""
    own: Any = gradient
    if type(gradient) is not Tensor or not hasattr(own, "_use_count"):
        return None
    memory = torch._C._storage_Use_Count(gradient.untyped_storage()._cdata)
    return _Holders(sys.getrefcount(gradient), own._use_count(), memory)


@cache
def _holders_of_one_alone() -> _Holders:
    """Count them for a gradient that autograd has made for one node alone."""
    counter = _Counter()
    with torch.enable_grad(), torch.inference_mode(False):
        leaf = torch.ones(2, device="cpu", requires_grad=True)
        (_Meeting.apply(leaf * 2, counter) * leaf).sum().backward()  # type: ignore[no-untyped-call]
    return counter.held or _Holders(-1, -1, -1)


class _Counter:
    """Keep how many hold a gradient, where an `Arrival` would add to it."""

    held: _Holders | None = None

    def join(self, gradient: Tensor, held: _Holders | None) -> Tensor:
        self.held = held
        return gradient


def _places(maps_NMx: Tensor, count: int) -> _Places:
    sizes = maps_NMx.shape[:1] + maps_NMx.shape[2:]
    if torch.compiler.is_compiling():  # one node of a graph, for images of any size
        flat = _positions_in_graph(maps_NMx.detach(), count)
        return _Places(flat, torch.unravel_index(flat, sizes))
    return _positions(sizes, count, maps_NMx.device)


@kept(256)
def _positions(sizes: tuple[int, ...], count: int, device: torch.device) -> _Places:
    """Choose distinct positions of (N, …)."""
    flat = spread(count, prod(sizes))
    index = tuple(axis.to(device) for axis in torch.unravel_index(flat, sizes))
    return _Places(flat.to(device), index)


@torch.library.custom_op(
    "convsim::sample_positions", mutates_args=(), schema="(Tensor maps, int count) -> Tensor"
)
def _positions_in_graph(maps: Tensor, count: int) -> Tensor:
    return spread(count, prod(maps.shape[:1] + maps.shape[2:])).to(maps.device)


@_positions_in_graph.register_fake
def _(maps: Tensor, count: int) -> Tensor:
    positions = prod(maps.shape[:1] + maps.shape[2:])
    return maps.new_empty(torch.sym_min(count, positions), dtype=torch.long)
