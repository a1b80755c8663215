"""Layers solved one after the other, against what the original network computes.

Each layer of the smaller network is fitted to the maps that come out of the smaller network so far,
so that later layers repair what earlier ones lost. Shape suffixes: G groups, M filters of a group,
P = C·n what a filter reads, S samples, O all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsim.precision import full_precision
from convsim.shrinking.calibration import device_of
from convsim.shrinking.channels import AxisKey, KeptAxes
from convsim.shrinking.compensation import ridge_regression, ridge_regression_of_few
from convsim.shrinking.consumers import add_constant_
from convsim.shrinking.resuming import Cut, Reached
from convsim.shrinking.resuming import cuts as find_cuts
from convsim.shrinking.road import Road, Start
from convsim.shrinking.statistics import RegressionStatistics
from convsim.shrinking.survey import Survey
from convsim.shrinking.topology import Fate, norm_scale
from convsim.shrinking.weights import filters_of, set_filters_, windows_of

_SAMPLES = 32
"""How many samples are enough for each predictor of a layer: more changed no accuracy."""
_FEW_SAMPLES = 4
"""How many tell roughly what a fit repairs."""
_MOST = 8192
"""Predictors or samples, whichever are fewer, of a layer that is fitted: their square is kept."""
_RIDGE = 1e-3
"""Of the regressions, relative to the mean square of each predictor; it pulls towards the weight as
it is."""
_MOST_BYTES = 2**28
"""Of samples of the original's outputs that are kept at a time."""
_NUMBER = 4
"""Bytes of one."""
_SILENT = 1e-3
"""A BatchNorm's scale below this share of its largest: its channel hardly reaches the sum."""


class Fitting:
    """Fits layers of smaller networks, one after the other, to what the original computes.

    Attributes:
        layers: The names of all layers that can be fitted: those linear in what they read, of
            8,192 numbers at a position or as many samples at most.
        cuts: Where the original's forward passes can be resumed.

    Args:
        original: The original.
        found: What was found in it.
        batches: The calibration images.
        positions: How many positions of each image to take.
        cuts: Where its forward passes can be resumed; looked for if None.
        samples: How many are enough for each predictor of a layer; it looks at as many batches.
    """

    def __init__(
        self,
        original: nn.Module,
        found: Survey,
        batches: Sequence[Tensor],
        positions: int,
        cuts: Sequence[Cut] | None = None,
        samples: int = _SAMPLES,
    ) -> None:
        self._original, self._found, self._batches = original, found, batches
        self._positions, self._samples = positions, samples
        self.layers = [
            name
            for name, fate in found.fates.items()
            if fate.linear
            and (
                filters_of(original.get_submodule(name))[0, 0].numel() <= _MOST
                or self._samples_of(name, range(len(batches))) <= _MOST
            )
        ]
        if cuts is None:
            cuts = find_cuts(original, batches[0][:2].to(device_of(original)), self.layers)
        self.cuts = cuts
        self._whole, self._asked = Road(original, batches, cuts), 0
        self._chosen: dict[str, list[int]] = {}
        self._wanted: dict[str, list[Tensor]] = {}

    def rough(self, batches: Sequence[Tensor]) -> Fitting:
        """Make another that looks at few samples, of these batches."""
        return Fitting(
            self._original, self._found, batches, self._positions, self.cuts, _FEW_SAMPLES
        )

    def fit_(
        self,
        small: nn.Module,
        axes: KeptAxes,
        layers: Sequence[str],
        progress: Callable[[], None] = lambda: None,
        since: Callable[[int], Start | None] = lambda number: None,
    ) -> Road:
        """Fit layers of a smaller network in place.

        What a layer should put out is what it puts out in the original network. Where that is added
        to another tensor, as in a residual block, the sum should be the original's: so the layer
        makes up for what the other summand lacks as well. The difference is regressed on the
        layer's windows by least squares. The coefficients are added to the layer's weight, and the
        constant to its bias or the mean of its BatchNorm.

        Args:
            small: The smaller network, on the same device.
            axes: Which indices of the original's axes it has.
            layers: The layers' names, in the order of computation.
            progress: Called after each layer.
            since: As of `Road`, for the smaller network.

        Returns:
            How far the smaller network has come with each batch.
        """
        road = Road(small, self._batches, self.cuts, since)
        stages = [_Stage(name, self._found.fates[name], small, axes) for name in layers]
        for stage in stages:
            stage.batches = self._batches_of(stage)
            stage.few = self._samples_of(stage.name, stage.batches) < stage.predictors
        for together in self._chunks(stages):
            self._take(together)
            for stage in together:
                stage.solve_(road, self._wanted[stage.name], self._positions)
                progress()
        return road

    def _batches_of(self, stage: _Stage) -> list[int]:
        """Choose batches with enough samples for a layer, others than for the layer before."""
        if stage.name not in self._chosen:
            start, count = self.layers.index(stage.name), len(self._batches)
            enough, chosen = self._samples * stage.predictors, list[int]()
            while len(chosen) < count and self._samples_of(stage.name, chosen) < enough:
                chosen.append((start + len(chosen)) % count)
            self._chosen[stage.name] = sorted(chosen)
        return self._chosen[stage.name]

    def _samples_of(self, name: str, batches: Sequence[int]) -> float:
        """Count the samples that a layer takes of batches."""
        each = min(self._positions, self._found.positions[name])
        return each * sum(len(self._batches[number]) for number in batches)

    def _chunks(self, stages: Sequence[_Stage]) -> Iterator[list[_Stage]]:
        """Split stages into runs of which the samples of all outputs fit in memory together."""
        chunk: list[_Stage] = []
        size = 0.0
        for stage in stages:
            own = self._samples_of(stage.name, stage.batches) * stage.outputs * _NUMBER
            if chunk and size + own > _MOST_BYTES:
                yield chunk
                chunk, size = [], 0.0
            chunk.append(stage)
            size += own
        yield chunk

    def _take(self, stages: Sequence[_Stage]) -> None:
        """Take what layers should tell of the batches they look at, and forget that of others."""
        known = {one.name: self._wanted[one.name] for one in stages if one.name in self._wanted}
        unknown = [one for one in stages if one.name not in known]
        self._wanted = known | {one.name: [] for one in unknown}
        if unknown:
            first, last = (self.layers.index(unknown[end].name) for end in (0, -1))
            if first < self._asked:
                self._whole = Road(self._original, self._batches, self.cuts)
            self._asked = last
        for number in range(len(self._batches)):
            reading = [(one.name, one.fate) for one in unknown if number in one.batches]
            if reading:
                for name, sample in self._whole.run(number, reading, self._positions).items():
                    self._wanted[name].append(sample)


class _Stage:
    """One layer that is fitted."""

    def __init__(self, name: str, fate: Fate, small: nn.Module, axes: KeptAxes) -> None:
        self.name, self.fate, self.small = name, fate, small
        self.layer: Any = small.get_submodule(name)
        self.norm: Any = None if fate.norm is None else small.get_submodule(fate.norm)
        kept = axes.get(AxisKey(name, "output"), axes.get(AxisKey(name, "channel")))
        self.kept = None if kept is None else torch.tensor(kept)
        self.batches: list[int] = []
        self.few = False
        filters_GMCn = filters_of(self.layer)
        self.outputs = filters_GMCn[..., 0, 0].numel()
        self.predictors = filters_GMCn[0, 0].numel()

    def solve_(
        self,
        road: Road,
        wanted: Sequence[Tensor],
        positions: int,
    ) -> None:
        """Fit the layer to samples of what it should tell, a tensor for each of its batches."""
        filters_GMCn = filters_of(self.layer)
        groups, filters = filters_GMCn.shape[:2]
        constant = self.layer.bias is not None or self.norm is not None

        def samples() -> Iterator[tuple[Tensor, Tensor]]:
            for number, want_SO in zip(self.batches, wanted, strict=True):
                with full_precision(want_SO):
                    windows_GSP, got_SO = self._look(road, number, positions)
                    missing_SO = self._missing(want_SO, got_SO)
                    missing_GSM = missing_SO.unflatten(1, (groups, filters)).transpose(0, 1)
                    yield windows_GSP, missing_GSM.to(windows_GSP)

        if self.few:
            x_GSP, y_GSM = (torch.cat(own, 1) for own in zip(*samples(), strict=True))
            found = ridge_regression_of_few(x_GSP, y_GSM, constant=constant, ridge=_RIDGE)
        else:
            device = filters_GMCn.device
            statistics = RegressionStatistics(groups, self.predictors, filters, device)
            for windows_GSP, missing_GSM in samples():
                statistics.add(windows_GSP, missing_GSM)
            found = ridge_regression(statistics, constant=constant, ridge=_RIDGE)
        more_GPM, constant_GM = found
        more_GMCn = more_GPM.mT.reshape(filters_GMCn.shape).to(filters_GMCn)
        set_filters_(self.layer, filters_GMCn + more_GMCn)
        add_constant_(self.layer, self.norm, constant_GM.flatten())

    def _look(self, road: Road, number: int, positions: int) -> tuple[Tensor, Tensor]:
        """Take what the layer reads in the smaller network so far, and what it tells."""
        windows: list[Tensor] = []
        count = positions * len(road.batches[number])

        def look(layer: nn.Module, read: Tensor) -> None:
            windows.append(windows_of(layer, read, count))
            if self.fate.addition is None:
                raise Reached

        found = road.run(number, [(self.name, self.fate)], positions, look)
        told_SO = found[self.name] if self.name in found else self._told(windows[0])
        return windows[0], told_SO

    def _told(self, windows_GSP: Tensor) -> Tensor:
        """Compute what the layer puts out of what it reads: (S, O)."""
        told_SO = (windows_GSP @ filters_of(self.layer).flatten(2).mT).transpose(0, 1).flatten(1)
        return told_SO if self.layer.bias is None else told_SO + self.layer.bias.detach()

    def _missing(self, want_SO: Tensor, got_SO: Tensor) -> Tensor:
        """Return by how much the layer's output should change."""
        if self.kept is not None:
            want_SO = want_SO[:, self.kept.to(want_SO.device)]
        missing_SO = want_SO - got_SO
        if self.fate.addition is None or self.fate.norm is None:
            return missing_SO
        scale_O = norm_scale(self.norm)
        heard_O = scale_O.abs() > _SILENT * scale_O.abs().max()
        return torch.where(heard_O, missing_SO / torch.where(heard_O, scale_O, 1), 0)
