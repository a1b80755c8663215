"""A convolution's weight as groups of filters: the only place that knows weight layouts.

Shape suffixes: G groups, M filters (output channels) of a group, C channels of a filter, k the
kernel's spatial shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from convsim.errors import ConvsimError
from convsim.kernels.sharding import Share, is_sharded
from convsim.precision import at_least_float32


class Geometry(NamedTuple):
    """Where a kernel's taps lie. Each field but the last has one integer per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool

    @property
    def taps(self) -> int:
        """How many taps the kernel has."""
        return prod(self.kernel)

    @property
    def lag_steps(self) -> tuple[int, ...]:
        """The distance between lags that meet the stride, in taps, by axis."""
        return tuple(s // gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))


@dataclass(frozen=True)
class KernelBank:
    """The filters of one convolution, with what else decides their similarity.

    Attributes:
        filters: (G, M, C, k), float64 for float64 weights and float32 for all others. Filters of
            one group share their input; filters of different groups do not.
        stride: One integer per spatial axis.
        dilation: One integer per spatial axis.
        transposed: Whether the layer is a transposed convolution.
        share: Where the layer's other filters are, if these are only this rank's.
    """

    filters: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    share: Share | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """How many groups the layer has, and filters each of them, on all ranks together."""
        if self.share is not None:
            return self.share.groups, self.share.filters
        groups, filters = self.filters.shape[:2]
        return groups, filters

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's spatial shape k."""
        return tuple(self.filters.shape[3:])

    @property
    def geometry(self) -> Geometry:
        """What decides which lags count, apart from the filters."""
        return Geometry(self.kernel, self.stride, self.dilation, self.transposed)

    def with_filters(self, filters: Tensor) -> KernelBank:
        """Put other filters of the same shape in place of these."""
        # Not by dataclasses.replace, which torch.compile of torch < 2.7 cannot trace.
        return KernelBank(filters, self.stride, self.dilation, self.transposed, self.share)

    def to_weight(self, filters: Tensor) -> Tensor:
        """Lay a (G, M, C, k) tensor out as the layer's weight, the inverse of `kernel_bank`."""
        return (filters.transpose(1, 2) if self.transposed else filters).flatten(0, 1)


def kernel_bank(
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
) -> KernelBank:
    """See a convolution's weight as groups of filters.

    Args:
        weight: (M_total, C, k) as in ``nn.Conv1d``, ``2d``, ``3d``; with `transposed`,
            (C_total, M, k) as in ``nn.ConvTranspose1d``, ``2d``, ``3d``. Real floating point.
        stride: The layer's stride, one integer or one per spatial axis.
        dilation: The layer's dilation, likewise.
        groups: The layer's groups.
        transposed: Whether the layer is a transposed convolution.

    Returns:
        The bank; its filters are a view of the weight where its dtype allows.

    Raises:
        ConvsimError: For a weight of another rank, type or layout, an empty weight, groups that do
            not divide, or a stride or dilation that is not a positive integer per axis.
    """
    if not isinstance(weight, Tensor):
        raise ConvsimError(f"A weight must be a torch.Tensor; got {type(weight).__name__}.")
    if isinstance(weight, UninitializedParameter):
        raise ConvsimError("The weight is lazy and not initialised: run one forward pass first.")
    if weight.is_nested:
        raise ConvsimError(
            "A weight must be dense; got a nested tensor. Pass its parts one by one."
        )
    shape = tuple(weight.shape)
    if is_sharded(weight):
        raise ConvsimError(
            f"The weight is a DTensor (shape {shape}), and a shard alone would give a wrong "
            "similarity. Pass weight.full_tensor()."
        )
    if not weight.is_floating_point() or weight.is_quantized or weight.layout != torch.strided:
        raise ConvsimError(
            f"A weight must be dense, real and floating point; got dtype {weight.dtype}, layout "
            f"{weight.layout}, shape {shape}. Convert it first, as with weight.float()."
        )
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        raise ConvsimError(
            "A convolution's weight has 3, 4 or 5 axes (filters, channels, then 1 to 3 spatial); "
            f"got {weight.dim()} axes, shape {shape}. For a single filter use weight.unsqueeze(0)."
        )
    if weight.numel() == 0:
        raise ConvsimError(f"A weight must not be empty; got shape {shape}.")
    if not _is_positive(groups) or shape[0] % groups:
        raise ConvsimError(
            f"groups must be a positive integer that divides the weight's first axis; got "
            f"groups={groups!r} for shape {shape}."
        )
    try:
        precise = at_least_float32(weight)
    except NotImplementedError as error:  # packed 4-bit numbers
        raise ConvsimError(f"torch cannot read numbers of dtype {weight.dtype}.") from error
    filters = precise.unflatten(0, (groups, -1))
    return KernelBank(
        filters=filters.transpose(1, 2) if transposed else filters,
        stride=_per_axis("stride", stride, dims),
        dilation=_per_axis("dilation", dilation, dims),
        transposed=transposed,
    )


def _per_axis(option: str, value: Any, dims: int) -> tuple[int, ...]:
    one = isinstance(value, Tensor) or not isinstance(value, Iterable)
    values: tuple[int, ...] = (value,) * dims if one else tuple(value)
    if len(values) != dims or not all(map(_is_positive, values)):
        raise ConvsimError(
            f"{option} must be a positive integer, or one for each of the {dims} spatial axes; "
            f"got {value!r}."
        )
    return values


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
