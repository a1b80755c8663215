"""Feature maps at sampled positions, whose gradient enters that of the maps in place.

A penalty reads S positions of maps that may have a hundred thousand. Plain indexing would send back
a tensor of zeros as large as the maps, to be written, filled and added at every layer. Here a node
of autograd's stands behind the maps: what arrives there from the loss, and from the samples, goes
on as one, the samples' added at their S positions. So whatever is done to the loss' gradient (a
scale, an accumulation, an average over ranks) is done to the penalty's.

Shape suffixes: N images, M maps, S samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, cached_property
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from convsim.backends import maps
from convsim.caching import kept_on_stream, tensors_are_real
from convsim.kernels.windows import spread
from convsim.precision import exact_dtype


def sample_maps(
    maps_NMx: Tensor, count: int, balance: Balance | None = None
) -> tuple[Tensor, Meeting | None]:
    """Read a layer's maps (N, M, …) at positions spread evenly over images and pixels.

    Nothing is drawn at random: a training batch is shuffled already, and training stays
    reproducible.

    Args:
        maps_NMx: The maps.
        count: At how many positions; at all if there are no more.
        balance: Where to weigh gradients instead of adding them, while it is pending.

    Returns:
        (S, M) of the maps' dtype or float32, differentiable, also twice; and where their gradient
        meets that of the maps, None where it is sent back as by indexing.
    """
    if not tensors_are_real(maps_NMx):
        return _read_traced(maps_NMx, count), None
    recorded = torch.is_grad_enabled() and maps_NMx.requires_grad
    if not recorded or maps_NMx.is_leaf or maps_NMx._is_view():  # autograd would copy a view
        return _Places(maps_NMx, count).read(maps_NMx), None
    meeting, places = Meeting(maps_NMx, count, balance), _places(maps_NMx, count)
    with torch.autograd._unsafe_preserve_version_counter(maps_NMx):  # type: ignore[attr-defined]
        # No number is changed.
        _, samples_SM = _Sampled.apply(maps_NMx, meeting, places)  # type: ignore[no-untyped-call]
    return samples_SM, meeting


def _places(maps_NMx: Tensor, count: int) -> maps.Places | _Places:
    return maps.places_in(maps_NMx, count) or _Places(maps_NMx, count)


class _Places:
    """Distinct positions of maps (N, M, …), at the most so many."""

    def __init__(self, maps_NMx: Tensor, count: int) -> None:
        sizes = maps_NMx.shape[:1] + maps_NMx.shape[2:]
        self._described, self._device = (sizes, count), maps_NMx.device

    def read(self, maps_NMx: Tensor) -> Tensor:
        """Read maps there: (S, M)."""
        pixels_NxM = maps_NMx.movedim(1, -1)
        if pixels_NxM.is_contiguous():
            return pixels_NxM.view(-1, pixels_NxM.shape[-1]).index_select(0, self._flat)
        return pixels_NxM[self.axes]

    def add_(self, gradient_NMx: Tensor, own_SM: Tensor) -> None:
        """Add samples' gradient to that of the maps."""
        own_SM = own_SM.to(gradient_NMx.dtype)
        pixels_NxM = gradient_NMx.movedim(1, -1)
        if pixels_NxM.is_contiguous():
            rows_PM = pixels_NxM.view(-1, pixels_NxM.shape[-1])
            if rows_PM.is_cpu:  # where index_add_ copies all rows there and back, of float16
                sum_SM = rows_PM.index_select(0, self._flat).add_(own_SM.contiguous())
                rows_PM.index_copy_(0, self._flat, sum_SM)
            else:
                rows_PM.index_add_(0, self._flat, own_SM)
        else:  # faster than to accumulate
            pixels_NxM[self.axes] = pixels_NxM[self.axes] + own_SM

    @cached_property
    def axes(self) -> tuple[Tensor, ...]:
        """One index for each axis of (N, …)."""
        return kept_on_stream(_axes, self._described, self._device)

    @cached_property
    def _flat(self) -> Tensor:
        """The positions counted through."""
        return kept_on_stream(_flat, self._described, self._device)[0]


def _flat(described: tuple[Any, ...]) -> tuple[Tensor, ...]:
    sizes, count = described
    return (spread(count, prod(sizes)),)


def _axes(described: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return torch.unravel_index(_flat(described)[0], described[0])


class _Sampled(torch.autograd.Function):
    """Read samples of maps that go on as they are, and let the gradients of both meet."""

    @staticmethod
    def forward(
        ctx: Any, maps_NMx: Tensor, meeting: Meeting, places: maps.Places | _Places
    ) -> tuple[Tensor, Tensor]:
        ctx.mark_dirty(maps_NMx)
        ctx.set_materialize_grads(False)
        ctx.meeting = meeting  # nothing is saved as a tensor: activation checkpointing counts those
        return maps_NMx, places.read(maps_NMx)

    @staticmethod
    def backward(
        ctx: Any, gradient_NMx: Tensor | None, own_SM: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        held = None if gradient_NMx is None else _holders(gradient_NMx)
        return ctx.meeting.join(gradient_NMx, own_SM, held), None, None


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


class Ends(Protocol):
    """What ends with a backward pass."""

    def end(self) -> None:
        """Take note of it."""


class Meeting:
    """Where the gradient of samples meets that of the maps, before both go on to their layer.

    Attributes:
        run: Returns what is to be ended when they have met, if that still exists.
    """

    run: Callable[[], Ends | None] = staticmethod(lambda: None)

    def __init__(self, maps_NMx: Tensor, count: int, balance: Balance | None) -> None:
        self._shape, self._dtype, self._device = maps_NMx.shape, maps_NMx.dtype, maps_NMx.device
        self._count, self._balance = count, balance

    def join(
        self, gradient_NMx: Tensor | None, own_SM: Tensor | None, held: _Holders | None
    ) -> Tensor | None:
        """Add the samples' gradient to that of the maps; either is None if it is not asked for.

        Args:
            gradient_NMx: The gradient of the maps.
            own_SM: The gradient of the samples.
            held: Who holds the former.
        """
        if (run := self.run()) is not None:
            run.end()
        if own_SM is None:
            return gradient_NMx
        if self._balance is not None and self._balance.pending:
            if gradient_NMx is not None:
                self._balance.weigh(gradient_NMx, own_SM)
            return gradient_NMx
        if torch.is_grad_enabled():  # create_graph=True
            zeros_NMx, own_SM = self._zeros(), own_SM.to(self._dtype)
            axes = _Places(zeros_NMx, self._count).axes
            dense_NMx = zeros_NMx.movedim(1, -1).index_put(axes, own_SM).movedim(-1, 1)
            return dense_NMx if gradient_NMx is None else gradient_NMx + dense_NMx
        if gradient_NMx is None:
            gradient_NMx = self._zeros()
        elif held != _holders_of_one_alone() or 0 in gradient_NMx.stride():
            gradient_NMx = gradient_NMx.clone()
        _places(gradient_NMx, self._count).add_(gradient_NMx, own_SM)
        return gradient_NMx

    def _zeros(self) -> Tensor:
        return torch.zeros(self._shape, dtype=self._dtype, device=self._device)


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
        leaf = torch.ones(2, 2, device="cpu", requires_grad=True)
        passed = leaf * 2
        own, _ = _Sampled.apply(passed, counter, _Places(passed, 1))  # type: ignore[no-untyped-call]
        (own * leaf).sum().backward()
    return counter.held or _Holders(-1, -1, -1)


class _Counter:
    """Keep how many hold a gradient, where a `Meeting` would add to it."""

    held: _Holders | None = None

    def join(self, gradient: Tensor, _: Tensor | None, held: _Holders | None) -> Tensor:
        self.held = held
        return gradient


def _read_traced(maps_NMx: Tensor, count: int) -> Tensor:
    """Read maps where torch traces or transforms; one node of a graph, for images of any size."""
    sizes = maps_NMx.shape[:1] + maps_NMx.shape[2:]
    if torch.compiler.is_compiling():
        flat = _positions_in_graph(maps_NMx.detach(), count)
    else:
        flat = spread(count, prod(sizes)).to(maps_NMx.device)
    return maps_NMx.movedim(1, -1)[torch.unravel_index(flat, sizes)]


@torch.library.custom_op(
    "convsim::sample_positions", mutates_args=(), schema="(Tensor maps, int count) -> Tensor"
)
def _positions_in_graph(maps: Tensor, count: int) -> Tensor:
    return spread(count, prod(maps.shape[:1] + maps.shape[2:])).to(maps.device)


@_positions_in_graph.register_fake
def _(maps: Tensor, count: int) -> Tensor:
    positions = prod(maps.shape[:1] + maps.shape[2:])
    return maps.new_empty(torch.sym_min(count, positions), dtype=torch.long)
