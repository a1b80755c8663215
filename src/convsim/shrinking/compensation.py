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


class RidgeRegression:
    """Tell outputs from predictors: Y ≈ X w + c, in the least squares, for any Y of the same X.

    Args:
        statistics: Moments of X.
        constant: Whether c may be other than zero.
        ridge: What is added to the mean square of every predictor, relative to it.

    Cost: P³/3 multiplications a group, and P²·O for every Y.
    """

    def __init__(self, statistics: RegressionStatistics, *, constant: bool, ridge: float) -> None:
        xx_GPP, self._constant = statistics.squares(centered=constant), constant
        self._x_GP = statistics.means()[0]
        own_GP = xx_GPP.diagonal(dim1=1, dim2=2)
        varies_GP = _varies(own_GP, self._x_GP, constant)
        self._scale_GP = torch.where(varies_GP, own_GP, math.inf).sqrt()
        self._unit_GPP = xx_GPP / self._scale_GP[:, :, None] / self._scale_GP[:, None]
        self._unit_GPP.diagonal(dim1=1, dim2=2).add_(ridge + _ROUNDING)
        self._factor_GPP, failed = torch.linalg.cholesky_ex(self._unit_GPP)
        self._failed = bool(failed.any())

    def tell(self, xy_GPO: Tensor, y_GO: Tensor) -> tuple[Tensor, Tensor]:
        """Return w (G, P, O) and c (G, O), float64.

        Args:
            xy_GPO: E[X Yᵀ].
            y_GO: E[Y].
        """
        if self._constant:
            xy_GPO = xy_GPO - self._x_GP[:, :, None] * y_GO[:, None]
        target_GPO = xy_GPO / self._scale_GP[:, :, None]
        if self._failed:
            unit_GPP, on_cpu = self._unit_GPP.cpu(), target_GPO.cpu()
            w_GPO = torch.linalg.lstsq(unit_GPP, on_cpu, driver="gelsd").solution.to(target_GPO)
        else:
            w_GPO = torch.cholesky_solve(target_GPO, self._factor_GPP)
        w_GPO = w_GPO / self._scale_GP[:, :, None]
        if not self._constant:
            return w_GPO, torch.zeros_like(y_GO)
        return w_GPO, y_GO - (self._x_GP[:, None] @ w_GPO)[:, 0]


def ridge_regression_of_few(
    x_GSP: Tensor, y_GSO: Tensor, *, constant: bool, ridge: float
) -> tuple[Tensor, Tensor]:
    """Do as `RidgeRegression` where there are fewer samples S than predictors.

    Xᵀ(X Xᵀ + ρ)⁻¹ Y is the same as (Xᵀ X + ρ)⁻¹ Xᵀ Y. The ridge is relative to the mean over
    predictors of their mean square: so few samples tell exactly by whatever varies a little.

    Args:
        x_GSP: X.
        y_GSO: Y.
        constant: As there, and so what is returned.
        ridge: As there.

    Cost: S³ + S²·P multiplications a group. Memory: 2·S·P numbers, float64.
    """
    exact = exact_dtype(x_GSP.device)
    x_GSP, y_GSO, samples = x_GSP.to(exact, copy=True), y_GSO.to(exact), x_GSP.shape[1]
    x_GP, y_GO = x_GSP.mean(1), y_GSO.mean(1)
    if constant:
        x_GSP, y_GSO = x_GSP.sub_(x_GP[:, None]), y_GSO - y_GO[:, None]
    own_GP = torch.linalg.vector_norm(x_GSP, dim=1).square() / samples
    x_GSP.mul_(_varies(own_GP, x_GP, constant)[:, None])
    gram_GSS = x_GSP @ x_GSP.mT / samples
    least_G = own_GP.mean(1) * (ridge + _ROUNDING)
    gram_GSS.diagonal(dim1=1, dim2=2).add_(torch.where(least_G > 0, least_G, 1)[:, None])
    w_GPO = x_GSP.mT @ torch.linalg.solve(gram_GSS, y_GSO / samples)
    if not constant:
        return w_GPO, torch.zeros_like(y_GO)
    return w_GPO, y_GO - (x_GP[:, None] @ w_GPO)[:, 0]


def _varies(own_GP: Tensor, x_GP: Tensor, constant: bool) -> Tensor:
    """Tell which predictors are more than a constant, of which rounding alone is left."""
    return own_GP > _CONSTANT * (own_GP + x_GP.square() if constant else own_GP)
