"""How consumers make up for maps that are gone.

Shape suffixes: M maps, K kept maps, G groups, P predictors, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convsim.precision import exact_dtype
from convsim.shrinking.statistics import RegressionStatistics

_ROUNDING = 1e-12
"""Eigenvalues of a correlation matrix below this are rounding."""
_ENOUGH = 4
"""How many samples there should be for each map."""
_DOUBT = 0.1
"""The least share that is taken as unexplained where there are fewer."""
_CONSTANT = 1e-6
"""A predictor whose variance is below this share of its mean square counts as constant."""


def map_compensation(gram_MM: Tensor, kept: Sequence[int], samples: int) -> Tensor:
    """Return A_MK, the best linear function of the kept maps for every map: z ≈ A z_S.

    A = G[:,S] G[S,S]⁻¹, with the rows of kept maps those of the identity. A consumer with weight W
    that reads W·A of the kept maps puts out what is nearest to before. Where the maps dropped are
    linear in those kept, nothing is lost, for any kernel, stride, dilation and padding with zeros.

    The ridge is that of Hoerl, Kennard and Baldwin (1975): as many times the share that is not
    explained, over that which is, as there are kept maps to a sample. It is zero where many samples
    are told exactly.

    Args:
        gram_MM: G = E[z zᵀ], float64.
        kept: The maps kept, S.
        samples: How many samples G was taken from.

    Cost: K³ + M·K² multiplications.
    """
    index_K = torch.as_tensor(list(kept))
    scale_M = gram_MM.diagonal().clamp_min(0).sqrt()
    scale_M = torch.where(scale_M > 0, scale_M, 1)
    unit_MM = gram_MM / scale_M[:, None] / scale_M[None]
    cross_MK, own_KK = unit_MM[:, index_K], unit_MM[index_K][:, index_K]
    values_K, vectors_KK = torch.linalg.eigh(own_KK)
    sound_K = values_K > _ROUNDING * max(1, len(index_K))
    inverse_K = torch.where(sound_K, 1 / values_K, 0)
    turned_MK = cross_MK @ vectors_KK
    explained_M = (turned_MK.square() * inverse_K).sum(1)
    lost = float((unit_MM.diagonal() - explained_M).clamp_min(0).sum())
    unexplained = lost / max(float(explained_M.sum()), _ROUNDING)
    if unexplained <= _ROUNDING:
        unexplained = 0.0
    if samples < _ENOUGH * len(scale_M):  # so few are told exactly by whatever is kept
        unexplained = max(unexplained, _DOUBT)
    ridge = len(index_K) / samples * unexplained
    inverse_K = torch.where(sound_K, 1 / (values_K + ridge), 0)
    a_MK: Tensor = (turned_MK * inverse_K) @ vectors_KK.mT
    a_MK = a_MK * scale_M[:, None] / scale_M[index_K][None]
    a_MK[index_K] = torch.eye(len(index_K), dtype=a_MK.dtype)
    return a_MK


def ridge_regression(
    statistics: RegressionStatistics, *, constant: bool, ridge: float
) -> tuple[Tensor, Tensor]:
    """Tell outputs from predictors: Y ≈ X w + c, in the least squares.

    Args:
        statistics: Moments of X and Y.
        constant: Whether c may be other than zero.
        ridge: What is added to the mean square of every predictor, relative to it.

    Returns:
        w (G, P, O) and c (G, O), float64.

    Cost: P³/3 + P²·O multiplications a group.
    """
    xx_GPP, xy_GPO, _ = statistics.moments(centered=constant)
    own_GP = xx_GPP.diagonal(dim1=1, dim2=2)
    whole_GP = own_GP + statistics.means()[0].square() if constant else own_GP
    scale_GP = _scale(own_GP, whole_GP)
    unit_GPP = xx_GPP / scale_GP[:, :, None] / scale_GP[:, None]
    unit_GPP.diagonal(dim1=1, dim2=2).add_(ridge + _ROUNDING)
    factor_GPP, failed = torch.linalg.cholesky_ex(unit_GPP)
    target_GPO = xy_GPO / scale_GP[:, :, None]
    if failed.any():
        w_GPO = torch.linalg.lstsq(unit_GPP.cpu(), target_GPO.cpu(), driver="gelsd").solution
        w_GPO = w_GPO.to(xy_GPO.device)
    else:
        w_GPO = torch.cholesky_solve(target_GPO, factor_GPP)
    w_GPO = w_GPO / scale_GP[:, :, None]
    if not constant:
        return w_GPO, torch.zeros_like(xy_GPO[:, 0])
    x_GP, y_GO = statistics.means()
    return w_GPO, y_GO - (x_GP[:, None] @ w_GPO)[:, 0]


def ridge_regression_of_few(
    x_GSP: Tensor, y_GSO: Tensor, *, constant: bool, ridge: float
) -> tuple[Tensor, Tensor]:
    """Do as `ridge_regression` where there are fewer samples S than predictors.

    Xᵀ(X Xᵀ + ρ)⁻¹ Y is the same as (Xᵀ X + ρ)⁻¹ Xᵀ Y.

    Args:
        x_GSP: X.
        y_GSO: Y.
        constant: As there, and so ridge and what is returned.
        ridge: As there.

    Cost: S³ + S²·P multiplications a group.
    """
    exact = exact_dtype(x_GSP.device)
    x_GSP, y_GSO, samples = x_GSP.to(exact), y_GSO.to(exact), x_GSP.shape[1]
    whole_GP, x_GP, y_GO = x_GSP.square().mean(1), x_GSP.mean(1), y_GSO.mean(1)
    if constant:
        x_GSP, y_GSO = x_GSP - x_GP[:, None], y_GSO - y_GO[:, None]
    scale_GP = _scale(x_GSP.square().mean(1), whole_GP)
    unit_GSP = x_GSP / scale_GP[:, None]
    gram_GSS = unit_GSP @ unit_GSP.mT / samples
    gram_GSS.diagonal(dim1=1, dim2=2).add_(ridge + _ROUNDING)
    w_GPO = unit_GSP.mT @ torch.linalg.solve(gram_GSS, y_GSO / samples) / scale_GP[:, :, None]
    if not constant:
        return w_GPO, torch.zeros_like(y_GO)
    return w_GPO, y_GO - (x_GP[:, None] @ w_GPO)[:, 0]


def _scale(own_GP: Tensor, whole_GP: Tensor) -> Tensor:
    """Return what predictors are divided by: infinity if it is no other than the constant."""
    varies_GP = own_GP > _CONSTANT * whole_GP  # what is left of the others is rounding
    return torch.where(varies_GP, own_GP, math.inf).sqrt()
