"""Squared correlation of feature maps over samples, which the forms on real inputs share.

Shape suffixes: S samples, M maps.
"""

from __future__ import annotations

from torch import Tensor

from convsim.errors import ConvsimError
from convsim.similarity import scaled_filters
from convsim.similarity.cosine import off_diagonal


def require_samples(samples: object) -> None:
    """Refuse a number of samples that gives no correlation."""
    if not isinstance(samples, int) or samples < 2:
        raise ConvsimError(f"samples must be an integer ≥ 2; got {samples!r}.")


def squared_correlation(samples_SM: Tensor) -> Tensor:
    """Average ρ_ij² over all pairs i ≠ j of columns; a column of zeros correlates with none."""
    unit_GMCS = scaled_filters(samples_SM.mT[None, :, None], "unit")[0]  # each map a filter
    unit_MS = unit_GMCS[0, :, 0]
    maps = len(unit_MS)
    return off_diagonal(unit_MS @ unit_MS.mT).square().sum() / max(1, maps * (maps - 1))
