"""Spearman's rank correlation, with average ranks for ties."""

from __future__ import annotations

from torch import Tensor

_FEWEST = 5


def rank_correlation(a_n: Tensor, b_n: Tensor) -> float:
    """Compute Spearman's rank correlation of two vectors, over the places where both are numbers.

    Returns:
        A value in [−1, 1]; NaN for fewer than five places, or where a vector is constant. Of four
        places a perfect order comes by chance once in twelve, up or down; of five once in sixty.

    Cost: a sort of each.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([1.0, 2, 4, 5, 7]), torch.tensor([0.1, 0.2, 0.9, 1.0, 3.0])
        >>> round(rank_correlation(a, b), 6)
        1.0
    """
    both = ~(a_n.isnan() | b_n.isnan())
    if both.sum() < _FEWEST:
        return float("nan")
    a, b = (_ranks(values[both]) for values in (a_n, b_n))
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b / (a.norm() * b.norm())).clamp(-1, 1))


def _ranks(values_n: Tensor) -> Tensor:
    _, inverse, counts = values_n.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    average: Tensor = last - (counts - 1) / 2
    return average[inverse]
