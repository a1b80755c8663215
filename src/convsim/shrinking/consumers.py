"""What the consumers of a group read of its maps, and how they read less of them.

Shape suffixes: M maps of the group (m those that a consumer reads), t places of each in its input,
G groups of a consumer, O filters of a group, C channels of a group, n taps, K kept maps.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import NonFiniteError
from convsim.shrinking.channels import Slot
from convsim.shrinking.compensation import map_compensation
from convsim.shrinking.pictures import small_maps
from convsim.shrinking.selection import Reading
from convsim.shrinking.statistics import MapStatistics
from convsim.shrinking.topology import Fate, norm_scale
from convsim.shrinking.weights import channel_axis, filters_of


class Consumer:
    """A layer that reads maps of a group, with the statistics of what it reads."""

    def __init__(self, model: nn.Module, slot: Slot, fate: Fate | None) -> None:
        self.name = slot.key.name
        self.module: Any = model.get_submodule(self.name)
        self.maps_m, self.places_mt = slot.places()
        norm = None if fate is None or fate.norm is None else model.get_submodule(fate.norm)
        self.scale = None if norm is None else norm_scale(norm)
        self.takes_constant = _takes_constant(self.module, norm)
        self.statistics = MapStatistics(len(self.maps_m), filters_of(self.module).device)
        self.pictures_mhw: Tensor | None = None

    def read(self, inputs: Tensor, positions: int, generator: torch.Generator) -> None:
        """Add what a batch of inputs holds, at positions drawn at random for every image.

        Of the first image the maps themselves are kept, made small.
        """
        axis = channel_axis(self.module, inputs)
        if not self.statistics.samples and axis == 1:
            self.pictures_mhw = small_maps(inputs[0, self.places_mt[:, 0].to(inputs.device)])
        rows_NPI = inputs.detach().movedim(axis, -1).reshape(len(inputs), -1, inputs.shape[axis])
        count = rows_NPI.shape[1]
        if count > positions:
            drawn = torch.randint(count, (len(inputs), positions), generator=generator)
            images = torch.arange(len(inputs)).unsqueeze(1)
            rows_NPI = rows_NPI[images.to(inputs.device), drawn.to(inputs.device)]
        maps_Smt = rows_NPI.flatten(0, 1)[:, self.places_mt.to(inputs.device)]
        try:
            self.statistics.add(maps_Smt.transpose(1, 2).flatten(0, 1))
        except NonFiniteError as error:
            raise NonFiniteError(
                f"Layer {self.name!r} read a map with NaN or infinite values. Check the inputs and "
                "the weights before it."
            ) from error

    def reading(self, maps: int) -> Reading:
        """Return G and H over all maps of the group, zero where this consumer reads none."""
        filters_GOCn = filters_of(self.module).double().cpu()
        groups, _, each, _ = filters_GOCn.shape
        if self.scale is not None:
            filters_GOCn = filters_GOCn * self.scale.double().cpu().view(groups, -1, 1, 1)
        gram_mm, covariance_mm = self.statistics.gram(), self.statistics.covariance()
        weight_mm = torch.zeros_like(gram_mm)
        same_mm = torch.zeros_like(gram_mm, dtype=torch.bool)
        for places_m in self.places_mt.unbind(1):
            group_m, channel_m = places_m // each, places_m % each
            for group in group_m.unique().tolist():
                inside = (group_m == group).nonzero()[:, 0]
                w_OCn = filters_GOCn[group][:, channel_m[inside]]
                block = torch.einsum("ocn,odn->cd", w_OCn, w_OCn)
                weight_mm[inside[:, None], inside] += block
                same_mm[inside[:, None], inside] = True
        told_mm = torch.where(same_mm, covariance_mm if self.takes_constant else gram_mm, 0)
        energy = float((weight_mm * torch.where(same_mm, covariance_mm, 0)).sum())
        return Reading(self._embed(told_mm, maps), self._embed(weight_mm, maps), energy)

    def _embed(self, values_mm: Tensor, maps: int) -> Tensor:
        whole_MM = torch.zeros(maps, maps, dtype=values_mm.dtype)
        whole_MM[self.maps_m[:, None], self.maps_m] = values_mm
        return whole_MM

    def told_by(self, kept: Collection[int]) -> tuple[list[int], Tensor, Tensor]:
        """Return the maps read, A (m, K), and the share of each that each kept one tells (m, K).

        A share is (A G)_jk-wise: factor² times the kept map's mean square, over the map's own.
        """
        gram_mm = self.statistics.gram()
        present = self.maps_m.tolist()
        staying = [n for n, channel in enumerate(present) if channel in kept]
        a_mK = map_compensation(gram_mm, staying, self.statistics.samples)
        own_m = gram_mm.diagonal()
        share_mK = a_mK.square() * own_m[staying] / torch.where(own_m > 0, own_m, 1)[:, None]
        return present, a_mK, share_mK

    def compensated(self, kept: Collection[int], module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the filters (G, O, C, n) that read the kept maps alone, and a constant (G, O).

        Args:
            kept: The maps kept.
            module: Whose filters: this layer, or the same one of a copy, of which maps of other
                groups are gone already. They keep their shape; those of maps that go are zero.
        """
        filters_GOCn = filters_of(module).double().cpu()
        groups, filters, each, _ = filters_GOCn.shape
        mean_m = self.statistics.mean()
        gram_mm = self.statistics.covariance() if self.takes_constant else self.statistics.gram()
        constant_GO = torch.zeros(groups, filters, dtype=torch.float64)
        stays_m = torch.tensor([int(m) in kept for m in self.maps_m])
        new_GOCn = filters_GOCn.clone()
        for places_m in self.places_mt.unbind(1):
            group_m, channel_m = places_m // each, places_m % each
            for group in group_m.unique().tolist():
                inside = (group_m == group).nonzero()[:, 0]
                staying = stays_m[inside].nonzero()[:, 0]
                a_mK = map_compensation(
                    gram_mm[inside[:, None], inside], staying.tolist(), self.statistics.samples
                )
                channels = channel_m[inside]
                w_OCn = filters_GOCn[group][:, channels]
                new_GOCn[group][:, channels] = 0
                new_GOCn[group][:, channels[staying]] = torch.einsum("ocn,ck->okn", w_OCn, a_mK)
                if self.takes_constant:
                    lost_m = mean_m[inside] - a_mK @ mean_m[inside[staying]]
                    constant_GO[group] += w_OCn.sum(2) @ lost_m
        return new_GOCn, constant_GO


def _takes_constant(module: Any, norm: nn.Module | None) -> bool:
    """Tell whether a constant map can go into a layer's bias, or the mean of its BatchNorm.

    Padding with zeros cuts a constant map off at the border, where a bias goes on.
    """
    has_place = module.bias is not None or norm is not None
    if isinstance(module, nn.Linear):
        return has_place
    padded = module.transposed or (
        any(module._reversed_padding_repeated_twice) and module.padding_mode == "zeros"
    )
    return has_place and not padded


def add_constant_(module: Any, norm: Any, constant_O: Tensor) -> None:
    """Add a constant to a layer's output, through its bias or the mean of its BatchNorm."""
    with torch.no_grad():
        if module.bias is not None:
            module.bias += constant_O.to(module.bias)
        elif norm is not None:
            norm.running_mean -= constant_O.to(norm.running_mean)
