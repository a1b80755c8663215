"""Which maps to keep: those from which what the consumers read can best be told.

Shape suffixes: M maps (m those not kept yet), U units of maps that are kept or dropped together,
R readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-12
"""What is left of a map's mean square, relative to all of it, where the map is told by others."""
_BLOCK = 64  # steps whose outer products are taken away together


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

    Cost: 5 M³ multiplications a reader, in products of matrices. Memory: 4 M² numbers a reader.
    """
    residuals = [_Residual(reading) for reading in readings]
    order: list[int] = []
    errors = [[residual.error() for residual in residuals]]
    sizes = torch.tensor([len(unit) for unit in units])
    maps_M = torch.tensor([map_ for unit in units for map_ in unit])
    unit_M = torch.repeat_interleave(torch.arange(len(units)), sizes)
    taken_U = torch.zeros(len(units), dtype=torch.bool)
    while len(order) < len(units):
        gains_M = torch.stack([residual.gains() for residual in residuals]).sum(0)
        gains_U = gains_M.new_zeros(len(units)).index_add_(0, unit_M, gains_M[maps_M])
        best = int(gains_U.masked_fill_(taken_U, -1).argmax())
        for map_ in units[best]:
            for residual in residuals:
                residual.keep(map_)
        taken_U[best] = True
        order.append(best)
        errors.append([residual.error() for residual in residuals])
    return Selection(tuple(order), torch.tensor(errors, dtype=torch.float64))


class _Residual:
    """R = G − G[:,S] G[S,S]⁻¹ G[S,:] of one reader, and Q = R H R.

    A map j that is kept takes c cᵀ from R, with c = r_j / √R_jj, and c uᵀ + u cᵀ from Q, with
    u = q_j / √R_jj − ½ (Q_jj / R_jj) c. These are gathered and taken away together, 64 steps' at a
    time. Rows and columns of kept maps are taken out, and Q is computed anew, once they are a
    quarter.
    """

    def __init__(self, reading: Reading) -> None:
        self.maps = len(reading.gram)
        self.left_m = torch.arange(self.maps)
        self.place_M = torch.arange(self.maps)
        self.r_mm = reading.gram.clone()
        self.h_mm = reading.weight
        self.floor_m = _ROUNDING * reading.gram.diagonal()
        self._begin()
        self.lost = float((self.h_mm * self.r_mm).sum())
        self.energy = self.lost if reading.energy is None else reading.energy

    def _begin(self) -> None:
        self.kept = self.gathered = 0
        self.q_mm = self.r_mm @ self.h_mm @ self.r_mm
        self.own_m, self.rhr_m = self.r_mm.diagonal().clone(), self.q_mm.diagonal().clone()
        self.c_Bm, self.u_Bm = self.r_mm.new_empty(2, _BLOCK, len(self.left_m))

    def gains(self) -> Tensor:
        """Tell by how much the relative error falls with each map."""
        gains_M = self.r_mm.new_zeros(self.maps)
        if self.energy > 0:
            gains_m = torch.where(self.own_m > self.floor_m, self.rhr_m / self.own_m, 0)
            gains_M[self.left_m] = gains_m / self.energy
        return gains_M

    def keep(self, map_: int) -> None:
        """Take one Schur step."""
        at = int(self.place_M[map_])
        self.kept += 1
        own = float(self.own_m[at])
        if own > float(self.floor_m[at]):
            c_bm, u_bm = self.c_Bm[: self.gathered], self.u_Bm[: self.gathered]
            r_m = self.r_mm[at] - c_bm[:, at] @ c_bm
            q_m = self.q_mm[at] - c_bm[:, at] @ u_bm - u_bm[:, at] @ c_bm
            gain = float(q_m[at]) / own
            c_m = r_m / own**0.5
            u_m = q_m / own**0.5 - gain / 2 * c_m
            self.own_m -= c_m.square()
            self.rhr_m -= 2 * c_m * u_m
            self.lost -= gain
            self.c_Bm[self.gathered], self.u_Bm[self.gathered] = c_m, u_m
            self.gathered += 1
        self.floor_m[at] = torch.inf
        if 4 * self.kept > len(self.left_m):
            self._take_away_gathered()
            self._take_out_kept()
        elif self.gathered == _BLOCK:
            self._take_away_gathered()

    def _take_away_gathered(self) -> None:
        c_bm, u_bm = self.c_Bm[: self.gathered], self.u_Bm[: self.gathered]
        self.r_mm.addmm_(c_bm.T, c_bm, alpha=-1)
        self.q_mm.addmm_(c_bm.T, u_bm, alpha=-1).addmm_(u_bm.T, c_bm, alpha=-1)
        self.gathered = 0

    def _take_out_kept(self) -> None:
        stays_m = self.floor_m < torch.inf
        self.left_m, self.floor_m = self.left_m[stays_m], self.floor_m[stays_m]
        self.place_M[self.left_m] = torch.arange(len(self.left_m))
        self.r_mm = self.r_mm[stays_m][:, stays_m]
        self.h_mm = self.h_mm[stays_m][:, stays_m]
        self._begin()

    def error(self) -> float:
        """Tell what is lost with the maps kept so far, relative to the output's energy."""
        return max(0.0, self.lost) / self.energy if self.energy > 0 else 0.0
