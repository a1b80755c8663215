"""Torch-Pruning: linear redundancy as its importance, and compensation of what it pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsim.batches import Batch
from convsim.errors import ConvsimError
from convsim.shrinking import Shrunk, shrink
from convsim.shrinking.calibration import calibration_batches, require_shrinkable
from convsim.shrinking.survey import survey


class RedundancyImportance:
    """How much the consumers of each channel would miss it, as ``importance=`` of a pruner.

    Channels are ranked, the most needed first. A channel's importance is how much the relative
    error of its consumers' outputs falls when it joins the channels before it, with the lost
    channels replaced by their best linear function of the kept ones (`convsim.shrink`). So
    importance can be compared across layers. The pruner compensates no consumer: call `compensate`
    afterwards, on the original network.

    Args:
        model: The network that the pruner prunes, the same object.
        batches: Calibration images as `convsim.shrink` takes them.
        positions: As in `convsim.shrink`.

    The network is surveyed at the first call, and again after it has been pruned.

    Example:
        >>> import torch_pruning
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> images = torch.randn(32, 3, 16, 16)
        >>> importance = RedundancyImportance(model, [images])
        >>> pruner = torch_pruning.pruner.BasePruner(
        ...     model, images[:2], importance, pruning_ratio=0.5, ignored_layers=[model[2]]
        ... )
        >>> pruner.step()
        >>> model[0].out_channels
        4
    """

    def __init__(self, model: nn.Module, batches: Iterable[Batch], *, positions: int = 32) -> None:
        require_shrinkable(model)
        self._model = model
        self._inputs = calibration_batches(copy.deepcopy(model).eval(), batches)
        self._positions = positions
        self._shapes: list[torch.Size] = []
        self._scores: dict[str, list[float]] = {}

    def __call__(self, group: Any, **_: Any) -> Tensor | None:
        """Return the importance of a group's channels, None where they cannot be judged."""
        shapes = [parameter.shape for parameter in self._model.parameters()]
        if shapes != self._shapes:
            self._scores, self._shapes = self._survey(), shapes
        names = {module: name for name, module in self._model.named_modules()}
        dependency, indices = group[0]
        scores = self._scores.get(names.get(dependency.target.module, ""))
        return None if scores is None else torch.tensor([scores[index] for index in indices])

    def _survey(self) -> dict[str, list[float]]:
        model = copy.deepcopy(self._model).eval()
        found = survey(model, self._inputs, layers=None, positions=self._positions)
        scores: dict[str, list[float]] = {}
        for group, selection in zip(found.groups, found.selections, strict=True):
            errors = selection.total_errors()
            falls = (errors[:-1] - errors[1:]).cummin(0).values.tolist()
            by_channel = {
                channel: fall
                for unit, fall in zip(selection.order, falls, strict=True)
                for channel in group.units[unit]
            }
            for slot in group.putting_out:
                if all(channel in by_channel for channel in slot.channels):
                    scores[slot.key.name] = [by_channel[channel] for channel in slot.channels]
        return scores


def compensate(
    model: nn.Module,
    history: Sequence[Sequence[Any]],
    batches: Iterable[Batch],
    *,
    positions: int = 32,
) -> Shrunk:
    """Let the consumers make up for the channels that a Torch-Pruning pruner took out.

    Args:
        model: The network as it was before.
        history: What the pruner did: ``pruner.DG.pruning_history()``.
        batches: Calibration images as `convsim.shrink` takes them.
        positions: As in `convsim.shrink`.

    Returns:
        A network of the pruned one's shape.

    Raises:
        ConvsimError: If the history prunes inputs instead of outputs, or another network; and as
            `convsim.shrink`.
    """
    return shrink(model, batches, keep=kept_channels(model, history), positions=positions)


def kept_channels(model: nn.Module, history: Sequence[Sequence[Any]]) -> dict[str, list[int]]:
    """Return the channels that a pruning history leaves, by layer name."""
    modules: dict[str, Any] = dict(model.named_modules())
    kept: dict[str, list[int]] = {}
    for name, prunes_outputs, indices in history:
        module = modules.get(name)
        count = getattr(module, "out_channels", getattr(module, "out_features", None))
        if count is None or not prunes_outputs:
            raise ConvsimError(
                f"The history prunes {'outputs' if prunes_outputs else 'inputs'} of {name!r}; only "
                "outputs of convolutions and linear layers of the model can be compensated for."
            )
        left = kept.setdefault(name, list(range(count)))
        gone = set(indices)
        kept[name] = [channel for place, channel in enumerate(left) if place not in gone]
    return kept
