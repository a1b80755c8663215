"""How far apart rounding may bring two routes to one number, on whatever processor they are taken.

A sum of n products, added up in whatever order a processor's kernels like, is off by at most
n·u·Σ|terms|, with the unit roundoff u = ε / 2 of its dtype (Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1). Roundings seldom all point one way: spread evenly over ±u they
come to λ·√n·u·Σ|terms| with a probability of at most 2·exp(−3λ²/2) (Hoeffding), for λ = 4 once in
10¹⁰. Two routes are at most twice that apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LAMBDA = 4


def rounding(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Tell how far two routes may be apart, in units of Σ|terms|.

    Args:
        terms: The roundings that a number meets on its way: the lengths of the sums that follow
            upon each other. How many numbers enter the result at all is a bound for it.
        dtype: The least precise that either route computes in.
    """
    return min(terms, LAMBDA * math.sqrt(terms)) * torch.finfo(dtype).eps


def assert_close(
    actual: Any,
    expected: Any,
    *,
    terms: int,
    size: float | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Compare two routes to a number, a tensor, or sequences or dicts of them.

    Args:
        actual: What the library gives.
        expected: What another route gives, of the same shape and with NaN at the same places.
        terms: See `rounding`.
        size: Σ|terms| of the sums, where they cancel and the result is smaller: 1 for a cosine, as
            ‖a‖·‖b‖ bounds what is added up for ⟨a, b⟩. By default the largest element of
            `expected`, for the elements of a gradient are sums of terms of one size.
        dtype: The least precise of either route; by default the least precise of the two tensors,
            and for Python's numbers float32.
    """
    __tracebackhide__ = True
    if isinstance(expected, Mapping):
        assert actual.keys() == expected.keys()
        actual, expected = [actual[key] for key in expected], list(expected.values())
    if isinstance(expected, Sequence):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other, terms=terms, size=size, dtype=dtype)
        return
    dtype = dtype or _least_precise(actual, expected)
    one, other = (torch.as_tensor(x).detach().double() for x in (actual, expected))
    assert one.shape == other.shape, f"shape {tuple(one.shape)} against {tuple(other.shape)}"
    finite = other[other.isfinite()].abs()
    largest = (finite.max().item() if finite.numel() else 0.0) if size is None else size
    allowed = rounding(terms, dtype) * largest
    apart = torch.where((one == other) | (one.isnan() & other.isnan()), 0, (one - other).abs())
    worst = int(apart.nan_to_num(math.inf).argmax()) if apart.numel() else 0
    assert (apart <= allowed).all(), (
        f"{one.flatten()[worst].item():.9g} against {other.flatten()[worst].item():.9g}, element "
        f"{worst} of {tuple(one.shape)}: {apart.flatten()[worst].item():.2g} apart, where {terms} "
        f"roundings of {dtype} in sums of size {largest:.3g} allow {allowed:.2g}"
    )


def _least_precise(*values: Any) -> torch.dtype:
    dtypes = [x.dtype for x in values if isinstance(x, Tensor) and x.dtype.is_floating_point]
    return max(dtypes or [torch.float32], key=lambda dtype: torch.finfo(dtype).eps)
