"""Sums over what a layer reads and puts out, that stream by in constant memory.

Shape suffixes: S samples (positions of images), M maps, G groups, P predictors, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsim.errors import NonFiniteError
from convsim.precision import exact_dtype

_ROUNDING = 1e-12
"""A constant map's variance, relative to its mean square, as float32 maps are rounded."""


class MapStatistics:
    """Running mean square G = E[z zᵀ] and mean E[z] of the maps that a layer reads.

    Args:
        maps: How many, M.
        device: Where the sums are kept.

    Cost: M² multiplications a sample, in float64, so that a map which is a linear function of
    others is found to rounding. Memory: M² numbers.
    """

    def __init__(self, maps: int, device: torch.device) -> None:
        self.samples = 0
        self._squares_MM = torch.zeros(maps, maps, dtype=exact_dtype(device), device=device)
        self._sum_M = torch.zeros(maps, dtype=exact_dtype(device), device=device)

    def add(self, maps_SM: Tensor) -> None:
        """Add samples.

        Raises:
            NonFiniteError: If one is NaN or infinite; nothing is added then.
        """
        maps_SM = maps_SM.to(self._sum_M.dtype)
        if not maps_SM.isfinite().all():
            raise NonFiniteError("a map holds NaN or infinite values")
        self._squares_MM += maps_SM.mT @ maps_SM
        self._sum_M += maps_SM.sum(0)
        self.samples += len(maps_SM)

    def gram(self) -> Tensor:
        """Return G: (M, M), float64, on the CPU."""
        return self._squares_MM.cpu().double() / self.samples

    def covariance(self) -> Tensor:
        """Return G about the means. A map that varies by no more than rounding is constant."""
        gram_MM, mean_M = self.gram(), self.mean()
        covariance_MM = gram_MM - mean_M[:, None] * mean_M[None]
        varies_M = covariance_MM.diagonal() > _ROUNDING * gram_MM.diagonal()
        return torch.where(varies_M[:, None] & varies_M[None], covariance_MM, 0)

    def mean(self) -> Tensor:
        """Return the mean of every map: (M,), float64, on the CPU."""
        return self._sum_M.cpu().double() / self.samples


class RegressionStatistics:
    """Running moments of predictors X and of outputs Y to be told from them, with a constant.

    Args:
        groups: G regressions side by side, as the groups of a convolution are.
        predictors: P of each.
        outputs: O of each.
        device: Where the sums are kept.

    Products are taken in the samples' own precision, and added up in float64. Cost: P·(P + O)
    multiplications a sample and group. Memory: P·(P + O) numbers a group.
    """

    def __init__(self, groups: int, predictors: int, outputs: int, device: torch.device) -> None:
        exact = exact_dtype(device)
        self.samples = 0
        self._xx_GPP = torch.zeros(groups, predictors, predictors, dtype=exact, device=device)
        self._xy_GPO = torch.zeros(groups, predictors, outputs, dtype=exact, device=device)
        self._x_GP = torch.zeros(groups, predictors, dtype=exact, device=device)
        self._y_GO = torch.zeros(groups, outputs, dtype=exact, device=device)

    def add(self, x_GSP: Tensor, y_GSO: Tensor) -> None:
        """Add samples."""
        self._xx_GPP += x_GSP.mT @ x_GSP
        self._xy_GPO += x_GSP.mT @ y_GSO
        exact = self._x_GP.dtype
        self._x_GP += x_GSP.sum(1, dtype=exact)
        self._y_GO += y_GSO.sum(1, dtype=exact)
        self.samples += x_GSP.shape[1]

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the means of X (G, P) and Y (G, O)."""
        return self._x_GP / self.samples, self._y_GO / self.samples

    def squares(self, *, centered: bool) -> Tensor:
        """Return E[X Xᵀ], about the means or zero: (G, P, P)."""
        xx_GPP, x_GP = self._xx_GPP / self.samples, self.means()[0]
        return xx_GPP - x_GP[:, :, None] * x_GP[:, None] if centered else xx_GPP

    def cross(self) -> Tensor:
        """Return E[X Yᵀ]: (G, P, O)."""
        return self._xy_GPO / self.samples
