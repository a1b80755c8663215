"""A pair matrix made fit to be looked at: ordered by similarity, and binned if it is large."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity_order(matrix: Tensor) -> list[int]:
    """Order filters so that neighbours are alike: each is followed by the most similar one left.

    Args:
        matrix: (M, M), symmetric, similarity of every two filters; NaN counts as 0.

    Returns:
        A permutation of the filters, from the one most similar to all others.

    Cost: M² comparisons.
    """
    if not len(matrix):
        return []
    left = matrix.nan_to_num().fill_diagonal_(0)
    last = int(left.sum(0).argmax())
    order = [last]
    for _ in range(len(matrix) - 1):
        left[:, last] = -1
        last = int(left[last].argmax())
        order.append(last)
    return order


def binned(matrix: Tensor, bins: int) -> Tensor:
    """Average a matrix over at most `bins` equal runs of rows and columns, without its diagonal.

    Returns:
        The matrix itself if it is no larger; else (bins, bins), the last bin perhaps shorter. The
        diagonal holds the mean within a bin. NaN is left out; 0 where nothing is left.
    """
    size = len(matrix)
    if size <= bins:
        return matrix
    width = -(-size // bins)
    bin_M = torch.arange(size) // width
    membership = torch.nn.functional.one_hot(bin_M).to(matrix.dtype)
    counted = (1 - torch.eye(size, dtype=matrix.dtype)) * ~matrix.isnan()
    counts = membership.T @ counted @ membership
    return membership.T @ (matrix.nan_to_num() * counted) @ membership / counts.clamp(min=1)
