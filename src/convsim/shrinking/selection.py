"""Which maps to keep: those from which what the consumers read can best be told.

Shape suffixes: M maps, U units of maps that are kept or dropped together, R readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-12
"""What is left of a map's mean square, relative to all of it, where the map is told by others."""


@dataclass(frozen=True)
class Reading:
    """What one consumer reads of a group's maps, and how much it minds their loss.

    Attributes:
        gram: G_MM = E[z zᵀ] of the maps z as this consumer reads them, float64; about their means
            where the consumer's bias can take a constant.
        weight: H_MM = Σ over outputs and taps of wᵀw, float64.
        energy: The mean square of the consumer's output that errors are relative to, tr(H G) if
            None.
    """

    gram: Tensor
    weight: Tensor
    energy: float | None = None


@dataclass(frozen=True)
class Selection:
    """An order to keep units in, and what is lost with each number of them.

    Attributes:
        order: The units, the most needed first.
        errors: errors_UR[k, r], the relative error of what reader r puts out if the first k units
            are kept and the others replaced by their best linear function; (U + 1, R), float64.
    """

    order: tuple[int, ...]
    errors: Tensor

    def total_errors(self) -> Tensor:
        """Return the errors summed over readers: (U + 1,)."""
        return self.errors.sum(1)


def greedy_selection(readings: Sequence[Reading], units: Sequence[Sequence[int]]) -> Selection:
    """Order units so that the consumers' error falls most with each one kept.

    With S the maps kept, a consumer's mean square error is tr(H (G − G[:,S] G[S,S]⁻¹ G[S,:])).
    Keeping map j as well lowers it by r_jᵀ H r_j / R_jj, with R the residual in the outer brackets
    and r_j its column; R then loses r_j r_jᵀ / R_jj, one Schur step. Of several consumers the
    relative errors are added. A unit of several maps counts with the sum of their gains.

    Args:
        readings: What each consumer reads.
        units: The maps of each unit; together all M, none twice.

    Cost: 3 M³ multiplications a reader. Memory: 3 M² numbers a reader.
    """
    residuals = [_Residual(reading) for reading in readings]
    order: list[int] = []
    errors = [[residual.error() for residual in residuals]]
    left = dict(enumerate(units))
    one_each = all(len(unit) == 1 for unit in units)
    maps_U = torch.tensor([unit[0] for unit in units])
    taken_U = torch.zeros(len(units), dtype=torch.bool)
    while left:
        gains_M = torch.stack([residual.gains() for residual in residuals]).sum(0)
        if one_each:
            gains_U = gains_M[maps_U]
        else:
            gains_U = torch.stack([gains_M[list(unit)].sum() for unit in units])
        best = int(gains_U.masked_fill(taken_U, -1).argmax())
        for map_ in left.pop(best):
            for residual in residuals:
                residual.keep(map_)
        taken_U[best] = True
        order.append(best)
        errors.append([residual.error() for residual in residuals])
    return Selection(tuple(order), torch.tensor(errors, dtype=torch.float64))


class _Residual:
    """R = G − G[:,S] G[S,S]⁻¹ G[S,:] of one reader, with the diagonal of R H R."""

    def __init__(self, reading: Reading) -> None:
        self.r_MM = reading.gram.clone()
        self.h_MM = reading.weight
        self.floor_M = _ROUNDING * reading.gram.diagonal()
        energy = reading.energy
        self.energy = float((self.h_MM * self.r_MM).sum()) if energy is None else energy
        self.left = float((self.h_MM * self.r_MM).sum())
        self.rhr_M = ((self.r_MM @ self.h_MM) * self.r_MM).sum(1)

    def gains(self) -> Tensor:
        """Tell by how much the relative error falls with each map."""
        if self.energy <= 0:
            return torch.zeros_like(self.rhr_M)
        own_M = self.r_MM.diagonal()
        gains_M = torch.where(own_M > self.floor_M, self.rhr_M / own_M, 0)
        return gains_M / self.energy

    def keep(self, map_: int) -> None:
        own = self.r_MM[map_, map_].clone()
        if own <= self.floor_M[map_]:
            return
        column_M = self.r_MM[:, map_].clone()
        hr_M = self.h_MM @ column_M
        rhr_M = self.r_MM @ hr_M
        gain = column_M @ hr_M / own
        self.rhr_M += (gain / own) * column_M.square() - (2 / own) * column_M * rhr_M
        self.r_MM.addr_(column_M, column_M, alpha=-1 / float(own))
        self.left -= float(gain)

    def error(self) -> float:
        return max(0.0, self.left) / self.energy if self.energy > 0 else 0.0
