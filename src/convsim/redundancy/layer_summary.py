"""What is said of one layer: from the statistics of its maps, and from its kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsim.kernels import KernelBank
from convsim.rank_correlation import rank_correlation
from convsim.redundancy.input_autocorrelation import energy_by_class
from convsim.redundancy.pair_statistics import PairStatistics
from convsim.redundancy.probes import Probe
from convsim.report.layer_redundancy import (
    HISTOGRAM_BINS,
    KernelRedundancy,
    LayerRedundancy,
    MapPair,
    Pictures,
)
from convsim.similarity import Options, bank_matrix, can_vary, filter_norms
from convsim.similarity.cosine import cosines

_WORST = 8
_RANKED_PAIRS = 2**17


def worst_pairs(probe: Probe, statistics: PairStatistics) -> tuple[MapPair, ...]:
    """Find the pairs most alike, with what their kernels say."""
    matrix = _matrix(statistics)
    maps = len(matrix)
    count = min(_WORST, maps * (maps - 1) // 2) if statistics.pixels > 1 else 0
    hidden = torch.ones_like(matrix).tril().bool()
    values, places = matrix.masked_fill(hidden, -1).flatten().topk(count)
    pairs = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        i, j = divmod(place, maps)
        pairs.append(MapPair(i, j, value, *_kernel_values(probe.bank, i, j)))
    return tuple(pairs)


def _kernel_values(bank: KernelBank | None, i: int, j: int) -> tuple[float, float]:
    """Return cosine and Convolutional Similarity of two filters, NaN if they share no input."""
    if bank is None:
        return math.nan, math.nan
    (group, first), (other, second) = (divmod(n, bank.filters.shape[1]) for n in (i, j))
    if group != other:
        return math.nan, math.nan
    two = bank.with_filters(bank.filters[group : group + 1, [first, second]])
    return float(cosines(two)[0, 0, 1].abs()), float(bank_matrix(two, Options())[0, 0, 1])


def _matrix(statistics: PairStatistics) -> Tensor:
    """Return the mean |cosine| of every two maps, NaN for maps of one pixel."""
    matrix = statistics.absolute_cosine()
    return matrix if statistics.pixels > 1 else torch.full_like(matrix, math.nan)


def summarize_layer(
    probe: Probe,
    statistics: PairStatistics,
    worst: tuple[MapPair, ...],
    pictures: Pictures | None,
    certificate: tuple[float, float],
    autocorrelation: Tensor | None,
) -> LayerRedundancy:
    """Put together what was measured of one layer and what its kernels say."""
    matrix = _matrix(statistics)
    pairs = matrix[torch.ones_like(matrix).triu(1).bool()]
    defined = pairs[~pairs.isnan()]
    return LayerRedundancy(
        name=probe.name,
        kind=type(probe.module).__name__,
        filters=len(matrix),
        pixels=statistics.pixels,
        similarity=float(pairs.mean()),
        correlation=statistics.correlation() if statistics.pixels > 1 else math.nan,
        effective_rank=_effective_rank(statistics.signed_cosine()),
        dead=int((~statistics.live).sum()),
        histogram=tuple(int(n) for n in torch.histc(defined, HISTOGRAM_BINS, 0, 1).tolist()),
        worst=worst,
        matrix=matrix.float(),
        kernels=None
        if probe.bank is None
        else _kernels(probe.bank, matrix, certificate, autocorrelation),
        pictures=pictures,
    )


def _kernels(
    bank: KernelBank,
    matrix: Tensor,
    certificate: tuple[float, float],
    autocorrelation: Tensor | None,
) -> KernelRedundancy:
    groups, filters = bank.filters.shape[:2]
    cosine = torch.block_diag(*cosines(bank).abs()).cpu()
    similarity = torch.block_diag(*bank_matrix(bank, Options())).cpu()
    same_group = torch.block_diag(*torch.ones(groups, filters, filters)).triu(1).bool()
    pairs = same_group.nonzero()
    drawn = pairs[:: max(1, math.ceil(len(pairs) / _RANKED_PAIRS))].unbind(1)
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
        bound=certificate[0],
        bounded=certificate[1],
        autocorrelation=autocorrelation,
        energy=None if autocorrelation is None else energy_by_class(autocorrelation, bank),
    )


def _effective_rank(gram_MM: Tensor) -> float:
    """Return exp of the entropy of a Gram matrix's eigenvalues over their sum, 0 if all are 0."""
    eigenvalues = torch.linalg.eigvalsh(gram_MM).clamp_min(0)
    if not eigenvalues.sum():
        return 0.0
    share = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(share).sum().exp())
