"""What is said of one layer: of its maps, pair by pair, and of its kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsim.kernels import KernelBank
from convsim.rank_correlation import rank_correlation
from convsim.redundancy.input_autocorrelation import energy_by_class
from convsim.report.layer_redundancy import SPARE_LOSS, KernelRedundancy, MapPair
from convsim.similarity import Options, bank_matrix, can_vary, filter_norms
from convsim.similarity.cosine import cosines
from convsim.strict_json import shortest

_WORST = 8
_RANKED_PAIRS = 2**17
_ENOUGH = 4
"""How many samples of each map there should be for every map, as in shrinking."""


def worst_pairs(matrix: Tensor, signed: Tensor, bank: KernelBank | None) -> tuple[MapPair, ...]:
    """Find the pairs most alike, with what their kernels say."""
    maps = len(matrix)
    hidden = torch.ones_like(matrix).tril().bool() | matrix.isnan()
    count = min(_WORST, int((~hidden).sum()))
    values, places = matrix.masked_fill(hidden, -1).flatten().topk(count)
    pairs = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        i, j = divmod(place, maps)
        pairs.append(MapPair(i, j, value, *_kernel_values(bank, i, j), float(signed[i, j])))
    return tuple(pairs)


def _kernel_values(bank: KernelBank | None, i: int, j: int) -> tuple[float, float]:
    """Return cosine and Convolutional Similarity of two filters, NaN if they share no input."""
    if bank is None:
        return math.nan, math.nan
    (group, first), (other, second) = (divmod(n, bank.filters.shape[1]) for n in (i, j))
    if group != other:
        return math.nan, math.nan
    two = bank.with_filters(bank.filters[group : group + 1, [first, second]])
    return _number(cosines(two)[0, 0, 1].abs()), _number(bank_matrix(two, Options())[0, 0, 1])


def _number(value: Tensor) -> float:
    """Read a number, of a float32 no digits that it does not have."""
    return shortest(float(value)) if value.dtype == torch.float32 else float(value)


def kernel_redundancy(
    bank: KernelBank,
    matrix: Tensor,
    certificate: Tensor,
    autocorrelation: Tensor | None,
    *,
    bias: bool,
) -> KernelRedundancy:
    """Put together what a layer's kernels say, beside the pair matrix of its maps."""
    groups, filters = bank.filters.shape[:2]
    cosine = torch.block_diag(*cosines(bank).abs()).cpu()
    similarity = torch.block_diag(*bank_matrix(bank, Options())).cpu()
    same_group = torch.block_diag(*torch.ones(groups, filters, filters)).triu(1).bool()
    pairs = same_group.nonzero()
    drawn = pairs[:: max(1, math.ceil(len(pairs) / _RANKED_PAIRS))].unbind(1)
    bound, bounded = map(_number, certificate)
    varies = can_vary(bank, Options())
    return KernelRedundancy(
        groups=groups,
        mean_cosine=float(cosine[same_group].mean(dtype=torch.float64)),
        mean_similarity=float(similarity[same_group].mean(dtype=torch.float64)),
        norms=filter_norms(bank.filters).flatten().float().cpu(),
        cosine=cosine.float(),
        similarity=similarity.float(),
        cosine_rank_correlation=rank_correlation(matrix[drawn], cosine[drawn]),
        similarity_rank_correlation=(
            rank_correlation(matrix[drawn], similarity[drawn]) if varies else math.nan
        ),
        bound=bound,
        bounded=bounded,
        directions=groups * min(filters, bank.filters[0, 0].numel() + bias),
        autocorrelation=autocorrelation,
        energy=None if autocorrelation is None else energy_by_class(autocorrelation, bank),
    )


def spare_maps(gram_MM: Tensor, samples: int) -> int | None:
    """Count the maps that the others tell with `SPARE_LOSS` of the energy of all maps lost.

    Kept is, one after the other, the map of which those before tell least: the pivoted Cholesky
    factorization of G = E[z zᵀ], whose remainder R = G − G[:,S] G[S,S]⁻¹ G[S,:] has the trace that
    is lost. At least one map is kept.

    Args:
        gram_MM: G times any factor, float64.
        samples: How many samples of z it was taken from.

    Returns:
        None for fewer than four samples a map, which would be told by whatever is kept.

    Cost: M·K²/2 multiplications for K maps kept.
    """
    maps = len(gram_MM)
    if samples < _ENOUGH * maps:
        return None
    left_M = gram_MM.diagonal().clamp_min(0)
    most = SPARE_LOSS * float(left_M.sum())
    factor_KM = torch.zeros_like(gram_MM)
    for kept in range(maps):
        if kept and float(left_M.sum()) <= most:
            return maps - kept
        pivot = int(left_M.argmax())
        own = float(left_M[pivot])
        if own == 0:  # of maps that are all zero
            continue
        column_M = gram_MM[pivot] - factor_KM[:kept, pivot] @ factor_KM[:kept]
        factor_KM[kept] = column_M / own**0.5
        left_M = (left_M - factor_KM[kept].square()).clamp_min(0)
        left_M[pivot] = 0
    return 0


def effective_rank(gram_MM: Tensor) -> float:
    """Return exp of the entropy of a Gram matrix's eigenvalues over their sum, 0 if all are 0."""
    eigenvalues = torch.linalg.eigvalsh(gram_MM).clamp_min(0)
    if not eigenvalues.sum():
        return 0.0
    share = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(share).sum().exp())
