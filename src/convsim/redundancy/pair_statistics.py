"""What every two feature maps of a layer have in common, summed over images as they stream by.

Shape suffixes: N images, M maps, P pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsim.precision import at_least_float32

_BLOCK = 128
"""Maps on a side of the blocks that the pair matrix is computed in, which a CPU cache holds."""
_CHUNK = 2**22
"""Most numbers in the maps, or in the blocks, of the images handled at once."""


class PairStatistics:
    """Running sums over images of the cosine and correlation of every two maps.

    A map is a vector over its pixels. One that is zero on an image has cosine 0 there with every
    other, and so has a constant one in the correlation; one that is zero, or constant, on every
    image is like nothing, and left out. So are maps of one pixel, of cosine ±1 whatever they hold,
    beside larger ones.

    Attributes:
        images: How many images were added, without those that are left out.
        pixels: The most pixels a map had.
        samples: How many pixels were seen of each map, over all those images.
        live: (M,) bool, whether a map was other than zero on any image.

    Args:
        maps: M.
        device: Where the maps lie.
        pooled: Whether also to sum their products over all images, as one long vector.

    Cost: M²·P/2 multiplications by image. Memory: 2 M² numbers in float64, with `pooled` 3 M².
    """

    def __init__(self, maps: int, device: torch.device, *, pooled: bool = False) -> None:
        self.pixels = 0
        self._pools = pooled
        self.live = torch.zeros(maps, dtype=torch.bool, device=device)
        self._restart()

    def _restart(self) -> None:
        maps, device = len(self.live), self.live.device
        # MPS has no float64.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.images = self.samples = 0
        self._varying = torch.zeros_like(self.live)
        self._absolute_MM = torch.zeros(maps, maps, dtype=exact, device=device)
        self._signed_MM = torch.zeros_like(self._absolute_MM)
        self._correlation = torch.zeros((), dtype=exact, device=device)
        self._pooled_MM = torch.zeros_like(self._absolute_MM) if self._pools else None

    def add(self, maps_NMP: Tensor) -> bool:
        """Add images, all of them or none.

        Returns:
            False, and nothing is added, if a map holds NaN or infinity.
        """
        maps_NMP = at_least_float32(maps_NMP)
        count, maps, pixels = maps_NMP.shape
        low_NM, high_NM = maps_NMP.aminmax(dim=-1)
        peak_NM = torch.maximum(-low_NM, high_NM)
        if not peak_NM.isfinite().all():
            return False
        self.live |= (peak_NM > 0).any(0)
        if pixels == 1 < self.pixels:
            return True
        if self.pixels == 1 < pixels:
            self._restart()
        at_once = max(1, _CHUNK // (maps * max(pixels, min(maps, _BLOCK))))
        for chunk_NMP, chunk_NM1 in zip(
            maps_NMP.split(at_once), peak_NM.unsqueeze(-1).split(at_once), strict=True
        ):
            self._add_chunk(chunk_NMP, chunk_NM1)
        self.images += count
        self.samples += count * pixels
        self.pixels = max(self.pixels, pixels)
        return True

    def _add_chunk(self, maps_NMP: Tensor, peak_NM1: Tensor) -> None:
        """Add the sums over some images, from unit vectors u of the maps less their mean.

        With x = ‖x‖(α·u + β·1/√P), α² + β² = 1, the cosine of two maps is α_i·α_j·⟨u_i, u_j⟩ +
        β_i·β_j: one matrix product serves both, and nothing is subtracted that could cancel.
        """
        scale_NM1 = torch.where(peak_NM1 > 0, peak_NM1, 1)  # squares stay in range
        unit_NMP = maps_NMP / scale_NM1
        mean_NM1 = unit_NMP.mean(-1, keepdim=True)
        unit_NMP -= mean_NM1
        varying_NM1 = unit_NMP.square().sum(-1, keepdim=True)
        constant_NM1 = mean_NM1.square() * unit_NMP.shape[-1]
        # What is left of a constant map is rounding: it has no direction.
        rounding = (8 * torch.finfo(unit_NMP.dtype).eps) ** 2
        varying_NM1 = torch.where(varying_NM1 <= rounding * constant_NM1, 0, varying_NM1)
        self._varying |= (varying_NM1 > 0).any(0).squeeze(-1)
        unit_NMP *= torch.where(varying_NM1 > 0, varying_NM1.rsqrt(), 0)
        norm_NM1 = (varying_NM1 + constant_NM1).sqrt()
        norm_NM1 = torch.where(norm_NM1 > 0, norm_NM1, 1)
        alpha_NM1 = varying_NM1.sqrt() / norm_NM1
        beta_NM1 = mean_NM1.sign() * constant_NM1.sqrt() / norm_NM1

        # Zero where a map is: its cosines are 0 already.
        size_NM1 = norm_NM1.to(self._absolute_MM) * scale_NM1.to(self._absolute_MM)
        starts = range(0, unit_NMP.shape[1], _BLOCK)
        blocks = [slice(start, start + _BLOCK) for start in starts]
        for n, rows in enumerate(blocks):
            for columns in blocks[n:]:
                same = rows == columns
                correlation_Nab = unit_NMP[:, rows] @ unit_NMP[:, columns].mT
                cosine_Nab = (correlation_Nab * alpha_NM1[:, rows]).mul_(alpha_NM1[:, columns].mT)
                cosine_Nab.addcmul_(beta_NM1[:, rows], beta_NM1[:, columns].mT)
                self._signed_MM[rows, columns] += cosine_Nab.sum(0)
                if self._pooled_MM is not None:
                    products_Nab = cosine_Nab.to(size_NM1) * size_NM1[:, rows]
                    self._pooled_MM[rows, columns] += (products_Nab * size_NM1[:, columns].mT).sum(
                        0
                    )
                self._absolute_MM[rows, columns] += cosine_Nab.abs_().sum(0)
                if same:
                    correlation_Nab.diagonal(dim1=1, dim2=2).zero_()
                self._correlation += correlation_Nab.abs_().sum() * (0.5 if same else 1.0)

    def absolute_cosine(self) -> Tensor:
        """Return the mean over images of |cosine|: (M, M), float64, on the CPU.

        NaN for a map that is zero on every image, and for maps of one pixel.
        """
        directed = self.live & (self.pixels > 1)
        undefined_MM = ~(directed & directed.unsqueeze(1))
        return self._mean(self._absolute_MM).masked_fill(undefined_MM.cpu(), math.nan)

    def signed_cosine(self) -> Tensor:
        """Return the mean over images of the cosine: the Gram matrix of the unit maps."""
        return self._mean(self._signed_MM)

    def second_moment(self) -> Tensor | None:
        """Return ⟨F_i, F_j⟩ over all pixels of an image, mean over images; None unless summed."""
        return None if self._pooled_MM is None else self._mean(self._pooled_MM)

    def pooled_cosine(self) -> Tensor | None:
        """Return ⟨F_i, F_j⟩ / (‖F_i‖‖F_j‖), each map one vector over all pixels and images.

        (M, M), float32, on the CPU, NaN as in `absolute_cosine`; None unless it is summed.
        """
        gram_MM = self.second_moment()
        if gram_MM is None:
            return None
        norm_M = gram_MM.diagonal().clamp_min(0).sqrt()
        norm_M = torch.where(norm_M > 0, norm_M, 1)
        undefined_MM = self.absolute_cosine().isnan()
        cosine_MM = (gram_MM / norm_M / norm_M.unsqueeze(1)).clamp(-1, 1)
        return cosine_MM.masked_fill(undefined_MM, math.nan).float()

    def root_mean_square(self) -> Tensor | None:
        """Return each map's root mean square norm over images: (M,) float32; None likewise."""
        gram_MM = self.second_moment()
        if gram_MM is None:
            return None
        return gram_MM.diagonal().clamp_min(0).sqrt().float()

    def correlation(self) -> float:
        """Return the mean over images and pairs of the absolute correlation, NaN without pairs."""
        maps = int(self._varying.sum())
        pairs = maps * (maps - 1) // 2
        return float(self._correlation) / (pairs * self.images) if pairs else math.nan

    def _mean(self, sums_MM: Tensor) -> Tensor:
        """Mirror the upper triangle, the only one that is summed, and divide by the images."""
        upper_MM = sums_MM.triu().cpu().double() / self.images
        return upper_MM + upper_MM.triu(1).mT
