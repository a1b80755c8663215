"""Layers solved one after the other, against what the original network computes.

Each layer of the smaller network is fitted to the maps that come out of the smaller network so far,
so that later layers repair what earlier ones lost. Shape suffixes: G groups, M filters of a group,
P = C·n what a filter reads, S samples, O all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsim.precision import full_precision
from convsim.shrinking.calibration import device_of
from convsim.shrinking.channels import AxisKey, KeptAxes
from convsim.shrinking.compensation import ridge_regression
from convsim.shrinking.consumers import add_constant_
from convsim.shrinking.statistics import RegressionStatistics
from convsim.shrinking.topology import Additions, Fate, Seen, norm_scale
from convsim.shrinking.weights import filters_of, rows_of, set_filters_, windows_of

Layers = Sequence[tuple[str, Fate]]

_SAMPLES = 32
"""How many samples are enough for each predictor of a layer: more changed no accuracy."""
_MOST_BYTES = 2**28
"""Of samples of the original's outputs that are kept at a time."""
_NUMBER = 4
"""Bytes of one."""
_SILENT = 1e-3
"""A BatchNorm's scale below this share of its largest: its channel hardly reaches the sum."""


def solve_in_sequence_(
    small: nn.Module,
    original: nn.Module,
    axes: KeptAxes,
    layers: Mapping[str, Fate],
    batches: Sequence[Tensor],
    *,
    per_image: Mapping[str, float],
    positions: int,
    ridge: float,
    progress: Callable[[int, int], None],
) -> None:
    """Fit layers of a smaller network, one after the other, in place.

    What a layer should put out is what it puts out in the original network. Where that is added to
    another tensor, as in a residual block, the sum should be the original's: so the layer makes up
    for what the other summand lacks as well. The layer's weight gets what the difference is told by
    in the least squares from the layer's windows, its bias, or the mean of its BatchNorm, the rest
    that is constant.

    Args:
        small: The smaller network, on the same device.
        original: The original.
        axes: Which indices of the original's axes the smaller one has.
        layers: The layers' names and fates, in the order of computation.
        batches: The calibration images; each layer looks at as many batches as it needs.
        per_image: How many positions each layer has for one image.
        positions: How many positions of each image to take.
        ridge: Relative to the mean square of each predictor; it pulls towards the weight as it is.
        progress: Called after each layer with how many are done, and how many there are.
    """
    stages = [_Stage(name, fate, small, axes) for name, fate in layers.items() if fate.linear]
    for number, stage in enumerate(stages):
        stage.choose(batches, number, min(positions, per_image[stage.name]))
    done = 0
    for together in _chunks(stages, positions, batches):
        wanted = _wanted(original, together, batches, positions)
        for stage in together:
            stage.solve_(batches, wanted.pop(stage.name), positions, ridge)
            done += 1
            progress(done, len(stages))


def _wanted(
    original: nn.Module, stages: Sequence[_Stage], batches: Sequence[Tensor], positions: int
) -> dict[str, list[Tensor]]:
    """Take what layers should tell of the batches they look at, in one pass of the original."""
    wanted: dict[str, list[Tensor]] = {stage.name: [] for stage in stages}
    for number, batch in enumerate(batches):
        reading = [(one.name, one.fate) for one in stages if number in one.batches]
        if reading:
            found = _targets(original, reading, batch.to(device_of(original)), positions)
            for name, sample in found.items():
                wanted[name].append(sample)
    return wanted


def _chunks(
    stages: Sequence[_Stage], positions: int, batches: Sequence[Tensor]
) -> Iterator[list[_Stage]]:
    """Split stages into runs of which the samples of all outputs fit in memory together."""
    chunk: list[_Stage] = []
    size = 0
    for stage in stages:
        samples = positions * sum(len(batches[number]) for number in stage.batches)
        own = samples * stage.outputs * _NUMBER
        if chunk and size + own > _MOST_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(stage)
        size += own
    yield chunk


class _Reached(Exception):  # noqa: N818 - it carries a result, it is no error
    """The forward pass is past what was to be seen."""


def _targets(
    model: nn.Module,
    layers: Layers,
    inputs: Tensor,
    positions: int,
    look: Callable[[nn.Module, Tensor], None] = lambda layer, read: None,
) -> dict[str, Tensor]:
    """Run a network as far as needed, and take samples of what layers should tell: (S, O) each.

    They are taken at once, and `look` is called with what a layer reads: what comes later may
    overwrite either in place.
    """
    found: dict[str, Tensor] = {}
    count = positions * len(inputs)

    def take(name: str, maps: Tensor) -> None:
        found[name] = rows_of(model.get_submodule(name), maps, count)
        if len(found) == len(layers):
            raise _Reached

    def at_layer(name: str, fate: Fate) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            with additions.aside():
                look(module, args[0])
                if fate.addition is None:
                    take(name, output)

        return hook

    def at_sum(number: int, first: Seen, second: Seen, result: Tensor) -> None:
        for name, fate in layers:
            if fate.addition == number:
                take(name, result)

    additions = Additions(at_sum)
    handles = [
        model.get_submodule(name).register_forward_hook(at_layer(name, fate))
        for name, fate in layers
    ]
    try:
        with torch.no_grad(), additions:
            model(inputs)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Stage:
    """One layer that is fitted."""

    def __init__(self, name: str, fate: Fate, small: nn.Module, axes: KeptAxes) -> None:
        self.name, self.fate, self.small = name, fate, small
        self.layer: Any = small.get_submodule(name)
        self.norm: Any = None if fate.norm is None else small.get_submodule(fate.norm)
        kept = axes.get(AxisKey(name, "output"), axes.get(AxisKey(name, "channel")))
        self.kept = None if kept is None else torch.tensor(kept)
        self.batches: list[int] = []
        filters_GMCn = filters_of(self.layer)
        self.outputs = filters_GMCn[..., 0, 0].numel()
        self.predictors = filters_GMCn[0, 0].numel()

    def choose(self, batches: Sequence[Tensor], start: int, each: float) -> None:
        """Choose batches with enough samples, others than for the layer before, `each` an image."""
        samples = 0.0
        self.batches = []
        for number in range(len(batches)):
            if samples < _SAMPLES * self.predictors:
                self.batches.append((start + number) % len(batches))
                samples += each * len(batches[self.batches[-1]])
        self.batches.sort()

    def solve_(
        self,
        batches: Sequence[Tensor],
        wanted: Sequence[Tensor],
        positions: int,
        ridge: float,
    ) -> None:
        """Fit the layer to samples of what it should tell, a tensor for each of its batches."""
        filters_GMCn = filters_of(self.layer)
        groups, filters = filters_GMCn.shape[:2]
        device = filters_GMCn.device
        statistics = RegressionStatistics(groups, self.predictors, filters, device)
        for number, want_SO in zip(self.batches, wanted, strict=True):
            with full_precision(want_SO):
                windows_GSP, got_SO = self._look(batches[number].to(device), positions)
                missing_SO = self._missing(want_SO, got_SO)
                missing_GSM = missing_SO.unflatten(1, (groups, filters)).transpose(0, 1)
                statistics.add(windows_GSP, missing_GSM.to(windows_GSP))
        constant = self.layer.bias is not None or self.norm is not None
        more_GPM, constant_GM = ridge_regression(statistics, constant=constant, ridge=ridge)
        more_GMCn = more_GPM.mT.reshape(filters_GMCn.shape).to(filters_GMCn)
        set_filters_(self.layer, filters_GMCn + more_GMCn)
        add_constant_(self.layer, self.norm, constant_GM.flatten())

    def _look(self, inputs: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        """Take what the layer reads in the smaller network so far, and what it tells."""
        windows: list[Tensor] = []

        def look(layer: nn.Module, read: Tensor) -> None:
            windows.append(windows_of(layer, read, positions * len(inputs)))

        got = _targets(self.small, [(self.name, self.fate)], inputs, positions, look)
        return windows[0], got[self.name]

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
