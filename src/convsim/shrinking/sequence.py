"""Layers solved one after the other, against what the original network computes.

Each layer of the smaller network is fitted to the maps that come out of the smaller network so far,
so that later layers repair what earlier ones lost. Shape suffixes: G groups, M filters of a group,
P = C·n what a filter reads, S samples, O all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsim.precision import full_precision
from convsim.shrinking.channels import AxisKey, KeptAxes
from convsim.shrinking.compensation import ridge_regression
from convsim.shrinking.consumers import add_constant_
from convsim.shrinking.statistics import RegressionStatistics
from convsim.shrinking.topology import Additions, Fate, Seen, norm_scale
from convsim.shrinking.weights import filters_of, rows_of, set_filters_, windows_of

_SILENT = 1e-3
"""A BatchNorm's scale below this share of its largest: its channel hardly reaches the sum."""


def solve_in_sequence_(
    small: nn.Module,
    original: nn.Module,
    axes: KeptAxes,
    layers: Sequence[tuple[str, Fate]],
    batches: Sequence[Tensor],
    *,
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
        batches: The calibration images.
        positions: How many positions of each image to take.
        ridge: Relative to the mean square of each predictor; it pulls towards the weight as it is.
        progress: Called after each layer with how many are done, and how many there are.
    """
    for done, (name, fate) in enumerate(layers, 1):
        if fate.linear:
            stage = _Stage(name, fate, small, original, axes)
            stage.solve_(batches, positions, ridge)
        progress(done, len(layers))


Look = Callable[[Tensor], None]


def _ignore(read: Tensor) -> None:
    """Look away."""


class _Reached(Exception):  # noqa: N818 - it carries a result, it is no error
    """The forward pass is past what was to be seen."""


class _Stage:
    """One layer that is fitted."""

    def __init__(
        self, name: str, fate: Fate, small: nn.Module, original: nn.Module, axes: KeptAxes
    ) -> None:
        self.fate = fate
        self.small, self.original = small, original
        self.layer: Any = small.get_submodule(name)
        self.whole = original.get_submodule(name)
        self.norm: Any = None if fate.norm is None else small.get_submodule(fate.norm)
        kept = axes.get(AxisKey(name, "output"), axes.get(AxisKey(name, "channel")))
        self.kept = None if kept is None else torch.tensor(kept)

    def solve_(self, batches: Iterable[Tensor], positions: int, ridge: float) -> None:
        filters_GMCn = filters_of(self.layer)
        groups, filters = filters_GMCn.shape[:2]
        device = filters_GMCn.device
        predictors = filters_GMCn[0, 0].numel()
        statistics = RegressionStatistics(groups, predictors, filters, device)
        for batch in batches:
            inputs = batch.to(device)
            count = positions * len(inputs)
            with full_precision(inputs):
                windows: list[Tensor] = []
                want_SO = self._target(self.original, self.whole, inputs, positions, _ignore)
                got_SO = self._target(
                    self.small,
                    self.layer,
                    inputs,
                    positions,
                    lambda read: windows.append(windows_of(self.layer, read, count)),  # noqa: B023
                )
                missing_SO = self._missing(want_SO, got_SO)
                missing_GSM = missing_SO.unflatten(1, (groups, filters)).transpose(0, 1)
                statistics.add(windows[0], missing_GSM.to(windows[0]))
        constant = self.layer.bias is not None or self.norm is not None
        more_GPM, constant_GM = ridge_regression(statistics, constant=constant, ridge=ridge)
        more_GMCn = more_GPM.mT.reshape(filters_GMCn.shape).to(filters_GMCn)
        set_filters_(self.layer, filters_GMCn + more_GMCn)
        add_constant_(self.layer, self.norm, constant_GM.flatten())

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

    def _target(
        self, model: nn.Module, layer: nn.Module, inputs: Tensor, positions: int, look: Look
    ) -> Tensor:
        """Run a network as far as needed, and take samples of what the layer should tell: (S, O).

        They are taken at once, and `look` is called with what the layer reads: what comes later may
        overwrite either in place.
        """
        targets: list[Tensor] = []

        def at_layer(module: nn.Module, args: Any, output: Tensor) -> None:
            with additions.aside():
                look(args[0])
                if self.fate.addition is None:
                    targets.append(rows_of(module, output, positions * len(inputs)))
                    raise _Reached

        def at_sum(number: int, first: Seen, second: Seen, result: Tensor) -> None:
            if number == self.fate.addition:
                targets.append(rows_of(layer, result, positions * len(inputs)))
                raise _Reached

        additions = Additions(at_sum)
        handle = layer.register_forward_hook(at_layer)
        try:
            with torch.no_grad(), additions:
                model(inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
        return targets[0]
