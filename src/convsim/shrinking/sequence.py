"""Layers solved one after the other, against what the original network computes.

Each layer of the smaller network is fitted to the maps that come out of the smaller network so far,
so that later layers repair what earlier ones lost. Shape suffixes: G groups, M filters of a group,
P = C·n what a filter reads, S samples, O all outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsim.precision import full_precision
from convsim.shrinking.calibration import device_of
from convsim.shrinking.channels import AxisKey, KeptAxes
from convsim.shrinking.compensation import RidgeRegression, ridge_regression_of_few
from convsim.shrinking.consumers import add_constant_
from convsim.shrinking.rectified import Rectifier
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
_MOST_PREDICTORS, _MOST_SAMPLES = 8192, 2048
"""Of more predictors not their products are kept but the samples, and no more than so many."""
_RIDGE = 1e-3
"""Of the regressions, relative to the mean square of each predictor; it pulls towards the weight as
it is."""
_RIDGE_OF_FEW = 3
"""Times (P / S)²: where that is more, so few samples may be learnt by heart, and others tell which
ridge, up to this one, is best."""
_HELD_OUT = 5
"""Every so manieth batch tells."""
_MOST_BYTES = 2**28
"""Of samples of the original's outputs that are kept at a time."""
_NUMBER = 4
"""Bytes of one."""
_ROUNDS = 4
"""Regressions on what a ReLU hears, after the first; none where a layer is fitted roughly."""
_MOST_READ = 2**29
"""Bytes of a layer's windows that are kept for them."""
_SILENT = 1e-3
"""A BatchNorm's scale below this share of its largest: its channel hardly reaches the sum."""


_Sample = tuple[Tensor, Tensor, Tensor]
"""What a layer reads (G, S, P), should tell (S, O), and tells (S, O)."""
_Fit = tuple[Tensor, Tensor]
"""What is added to a layer's weight (G, P, M), and to its constant (G, M)."""


class Fitting:
    """Fits layers of smaller networks, one after the other, to what the original computes.

    Attributes:
        layers: The names of all layers that can be fitted: those linear in what they read.
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
        self.layers = [name for name, fate in found.fates.items() if fate.linear]
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
        stages = [
            _Stage(name, self._found.fates[name], small, axes, self._original) for name in layers
        ]
        for stage in stages:
            stage.batches = self._batches_of(stage)
            samples = self._samples_of(stage.name, stage.batches)
            stage.few = samples < stage.predictors
            most = _RIDGE_OF_FEW * (stage.predictors / samples) ** 2
            if self._samples >= _SAMPLES and most > _RIDGE and len(stage.batches) > 1:
                stage.ridges = (_RIDGE, math.sqrt(_RIDGE * most), most)
            bytes_read = samples * stage.groups * stage.predictors * _NUMBER
            if self._samples >= _SAMPLES and bytes_read <= _MOST_READ:
                stage.rounds = _ROUNDS
        for together in self._chunks(stages):
            self._take(together)
            for stage in together:
                last = self._whole if stage.name == self.layers[-1] else None
                stage.solve_(road, self._wanted[stage.name], self._positions, last)
                progress()
        return road

    def _batches_of(self, stage: _Stage) -> list[int]:
        """Choose batches with enough samples for a layer, others than for the layer before."""
        if stage.name not in self._chosen:
            start, count = self.layers.index(stage.name), len(self._batches)
            enough, chosen = self._samples * stage.predictors, list[int]()
            if stage.predictors > _MOST_PREDICTORS:
                enough = _MOST_SAMPLES
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

    def __init__(
        self, name: str, fate: Fate, small: nn.Module, axes: KeptAxes, original: nn.Module
    ) -> None:
        self.name, self.fate, self.small = name, fate, small
        self.layer: Any = small.get_submodule(name)
        norms: list[Any] = [
            None if fate.norm is None else model.get_submodule(fate.norm)
            for model in (small, original)
        ]
        self.norm, self.norm_before = norms
        kept = axes.get(AxisKey(name, "output"), axes.get(AxisKey(name, "channel")))
        self.kept = None if kept is None else torch.tensor(kept)
        self.batches: list[int] = []
        self.few, self.rounds = False, 0
        self.ridges: tuple[float, ...] = (_RIDGE,)
        filters_GMCn = filters_of(self.layer)
        self.groups, self.filters = filters_GMCn.shape[:2]
        self.outputs = self.groups * self.filters
        self.predictors = filters_GMCn[0, 0].numel()

    def solve_(
        self,
        road: Road,
        wanted: Sequence[Tensor],
        positions: int,
        whole: Road | None = None,
    ) -> None:
        """Fit the layer to samples of what it should tell, a tensor for each of its batches.

        Args:
            road: Of the smaller network.
            wanted: The samples.
            positions: How many positions of each image to take.
            whole: Of the original, if this is the last layer.
        """
        constant = self.layer.bias is not None or self.norm is not None
        samples: Iterable[_Sample] = self._samples(road, wanted, positions)
        ridge = self.ridges[0]
        if len(self.ridges) > 1:
            samples = list(samples)
            most = [one for number, one in enumerate(samples) if number % _HELD_OUT]
            fit = self._regression(most, constant)
            fits = [fit(ridge) for ridge in self.ridges]
            if whole is None:
                errors = self._errors(samples[::_HELD_OUT], fits)
            else:
                errors = self._errors_of_outputs(road, whole, fits)
            ridge = self.ridges[errors.index(min(errors))]
        if self.fate.rectified and self.rounds and not self.few:
            self._add_(*self._fitted_to_heard(list(samples), constant, ridge))
        else:
            self._add_(*self._regression(samples, constant)(ridge))

    def _add_(self, more_GPM: Tensor, constant_GM: Tensor) -> None:
        """Add a fit to the layer."""
        filters_GMCn = filters_of(self.layer)
        more_GMCn = more_GPM.mT.reshape(filters_GMCn.shape).to(filters_GMCn)
        set_filters_(self.layer, filters_GMCn + more_GMCn)
        if self.fate.addition is None:
            self._forget_constant_()
        add_constant_(self.layer, self.norm, constant_GM.flatten())

    def _errors(self, samples: Sequence[_Sample], fits: Sequence[_Fit]) -> list[float]:
        """Tell of each fit what of samples is still missing."""
        windows_GSP, want_SO, got_SO = _together(samples)
        missing_GSM = self._missing(want_SO, got_SO)
        return [float((missing_GSM - _told(windows_GSP, *fit)).square().sum()) for fit in fits]

    def _errors_of_outputs(self, road: Road, whole: Road, fits: Sequence[_Fit]) -> list[float]:
        """Tell of each fit how far the network's outputs are off.

        A sigmoid behind the layer hears little of large negative numbers, which are most of what
        the layer tells.
        """
        parts = [part for part in (self.layer, self.norm) if part is not None]
        before = copy.deepcopy([part.state_dict() for part in parts])
        errors = [0.0] * len(fits)
        for number in self.batches[::_HELD_OUT]:
            wanted = whole.finish(number)
            for place, fit in enumerate(fits):
                self._add_(*fit)
                errors[place] += _difference(wanted, road.finish(number))
                for part, state in zip(parts, before, strict=True):
                    part.load_state_dict(state)
        return errors

    def _regression(self, samples: Iterable[_Sample], constant: bool) -> Callable[[float], _Fit]:
        """Take samples, and return what regresses what is missing on them, with a ridge."""
        if self.few:
            windows_GSP, want_SO, got_SO = _together(samples)
            missing_GSM = self._missing(want_SO, got_SO)
            return lambda ridge: ridge_regression_of_few(
                windows_GSP, missing_GSM, constant=constant, ridge=ridge
            )
        statistics = self._moments(samples)
        xy_GPM, missing_GM = statistics.cross(), statistics.means()[1]
        return lambda ridge: RidgeRegression(statistics, constant=constant, ridge=ridge).tell(
            xy_GPM, missing_GM
        )

    def _moments(self, samples: Iterable[_Sample]) -> RegressionStatistics:
        device = filters_of(self.layer).device
        statistics = RegressionStatistics(self.groups, self.predictors, self.filters, device)
        for windows_GSP, want_SO, got_SO in samples:
            with full_precision(windows_GSP):
                statistics.add(windows_GSP, self._missing(want_SO, got_SO).to(windows_GSP))
        return statistics

    def _fitted_to_heard(self, samples: Sequence[_Sample], constant: bool, ridge: float) -> _Fit:
        """Regress what is missing; then, time and again, what is missing of what a ReLU hears."""
        statistics = self._moments(samples)
        regression = RidgeRegression(statistics, constant=constant, ridge=ridge)
        more_GPM, constant_GM = regression.tell(statistics.cross(), statistics.means()[1])
        windows_GSP, want_SO, got_SO = _together(samples)
        alone = self.fate.addition is None
        rectifier = Rectifier.behind(self.norm_before if alone else None, self._of_kept)
        with full_precision(windows_GSP):
            for _ in range(self.rounds):
                more_SO = _told(windows_GSP, more_GPM, constant_GM).transpose(0, 1).flatten(1)
                if not alone and self.norm is not None:
                    more_SO = more_SO * norm_scale(self.norm)
                target_SO = rectifier.targets(want_SO, got_SO + more_SO)
                missing_GSM = self._missing(target_SO, got_SO).to(windows_GSP)
                cross_GPM = windows_GSP.mT @ missing_GSM / missing_GSM.shape[1]
                mean_GM = missing_GSM.mean(1, dtype=constant_GM.dtype)
                more_GPM, constant_GM = regression.tell(cross_GPM.to(more_GPM), mean_GM)
        return more_GPM, constant_GM

    def _samples(self, road: Road, wanted: Sequence[Tensor], positions: int) -> Iterator[_Sample]:
        """Take what the layer reads, should tell and tells, batch by batch."""
        for number, want_SO in zip(self.batches, wanted, strict=True):
            with full_precision(want_SO):
                windows_GSP, got_SO = self._look(road, number, positions)
                yield windows_GSP, self._of_kept(want_SO), got_SO

    def _forget_constant_(self) -> None:
        """Take back what W·A has put into the BatchNorm's mean: the fit has told it again."""
        if self.norm is not None:
            self.norm.running_mean.copy_(self._of_kept(self.norm_before.running_mean))

    def _of_kept(self, values_xO: Tensor) -> Tensor:
        """Take those of the outputs that are kept, along the last axis."""
        return values_xO if self.kept is None else values_xO[..., self.kept.to(values_xO.device)]

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
        """Return by how much the layer's output should change: (G, S, M)."""
        missing_SO = want_SO - got_SO
        if self.fate.addition is not None and self.norm is not None:
            scale_O = norm_scale(self.norm)
            heard_O = scale_O.abs() > _SILENT * scale_O.abs().max()
            missing_SO = torch.where(heard_O, missing_SO / torch.where(heard_O, scale_O, 1), 0)
        return torch.unflatten(missing_SO, 1, (self.groups, self.filters)).transpose(0, 1)


def _told(windows_GSP: Tensor, more_GPM: Tensor, constant_GM: Tensor) -> Tensor:
    with full_precision(windows_GSP):
        return windows_GSP @ more_GPM.to(windows_GSP) + constant_GM[:, None].to(windows_GSP)


def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Sum the squares of what a network's outputs are off."""
    pairs = zip(wanted, found, strict=True)
    return sum(float((a.cpu().double() - b.cpu().double()).square().sum()) for a, b in pairs)


def _together(samples: Iterable[_Sample]) -> _Sample:
    windows, wanted, got = zip(*samples, strict=True)
    return torch.cat(windows, 1), torch.cat(wanted), torch.cat(got)
