"""Iterative initialization: minimise a penalty before training (Belmekki et al. 2024)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError, ConvsimWarning, NonFiniteError, require
from convsim.kernels import KernelBank, LayerFilter, conv_layers
from convsim.penalties import ActivationPenalty, Penalty, preset
from convsim.similarity import filter_norms


@dataclass(frozen=True)
class InitializationHistory:
    """What `initialize_` did.

    Attributes:
        values: For each layer, its penalty before each step and after the last: steps + 1 numbers.
        norm_ratio: For each layer, the mean of its filters' norms over that before; 1 where norms
            are kept.
    """

    values: dict[str, tuple[float, ...]]
    norm_ratio: dict[str, float]


def initialize_(
    model: nn.Module,
    penalty: str | Penalty = "recommended",
    *,
    steps: int = 100,
    lr: float = 0.002,
    keep_norm: bool | None = None,
    layers: LayerFilter | Iterable[LayerFilter] | None = None,
    progress: bool = False,
) -> InitializationHistory:
    """Lower the similarity of a model's freshly drawn filters, in place, before training.

    Takes Adam steps on the convolutions' weights, in closed form and without data. The model is
    written to once, at the end: whatever interrupts it leaves the weights as they were. Nothing is
    drawn at random, so equal weights give equal results.

    Args:
        model: The model, its weights freshly initialised.
        penalty: "recommended" (crossed, unit Convolutional Similarity), "authors" (the published
            recipe: raw filters, norms free to shrink), another name in `convsim.PRESETS`, or a
            `Penalty` on the kernels alone.
        steps: Number of Adam steps; 0 only measures.
        lr: Adam's learning rate; 0.002 is the authors'.
        keep_norm: Whether every filter is scaled back to the norm it came with after each step.
            The preset's own if None: True for all but "authors".
        layers: Which convolutions, as in `convsim.conv_layers`. Frozen ones are left out, as are
            those on which the penalty cannot act.
        progress: Whether to show a progress bar on stderr (needs ``convsim[lab]``).

    Returns:
        The history, by layer.

    Raises:
        ConvsimError: As `Regularizer`, for steps or lr out of range, and for a layer whose forward
            makes its own weight (weight standardisation), which cannot be written back.
        NonFiniteError: If a penalty or weight stops being finite; names the layer and the step.

    Cost: per step as `Regularizer.backward_`; three copies of the selected weights in memory.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        >>> history = initialize_(model, steps=20)
        >>> all(values[-1] < values[0] for values in history.values.values())
        True
    """
    chosen = preset(penalty)
    minimised = chosen.initialization or chosen.penalty
    if isinstance(minimised, ActivationPenalty):
        raise ConvsimError(
            f"{minimised} needs feature maps, and there are no images before training. Take a "
            'penalty on the kernels alone, such as "recommended" or "crossed".'
        )
    _check_options(steps, lr)
    keep_norm = chosen.keep_norm if keep_norm is None else keep_norm
    banks: dict[str, KernelBank] = {}
    write: dict[str, Callable[[Tensor], None]] = {}
    with torch.no_grad():
        for layer in conv_layers(model, layers, frozen=False):
            bank = layer.bank()
            if minimised.acts_on(bank):
                if steps:
                    layer.require_writable()
                banks[layer.name] = bank.with_filters(bank.filters.clone())
                write[layer.name] = layer.set_weight
    if not banks:
        warnings.warn(
            f"{minimised} cannot act on any selected layer: the model is left as it is.",
            ConvsimWarning,
            stacklevel=2,
        )
        return InitializationHistory({}, {})

    norms = {name: _norms(bank.filters) for name, bank in banks.items()}
    parameters, ones = [bank.filters for bank in banks.values()], [1.0] * len(banks)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    history: list[list[float]] = []
    with torch.no_grad(), _progress_bar(steps if progress else None) as advance:
        for step in range(steps + 1):
            for filters in parameters:
                filters.grad = torch.zeros_like(filters)
            values = minimised.add_gradients_(
                list(banks.values()), [filters.grad for filters in parameters], ones
            )
            history.append(torch.stack([value.cpu() for value in values]).tolist())
            _check_finite(dict(zip(banks, history[-1], strict=True)), step)
            if step == steps:
                break
            optimizer.step()
            if keep_norm:
                for name, bank in banks.items():
                    now = _norms(bank.filters)
                    ratio_GM = norms[name] / torch.where(now > 0, now, 1)
                    bank.filters.mul_(ratio_GM.to(bank.filters))
            advance()
        ratio = {
            name: (_norms(bank.filters).sum() / norms[name].sum()).item()
            if norms[name].any()
            else 1.0
            for name, bank in banks.items()
        }
        for name, bank in banks.items() if steps else ():
            write[name](bank.to_weight(bank.filters))
    columns = zip(*history, strict=True)
    return InitializationHistory(dict(zip(banks, columns, strict=True)), ratio)


def _check_options(steps: int, lr: float) -> None:
    if not isinstance(steps, int) or steps < 0:
        raise ConvsimError(f"steps must be an integer ≥ 0; got {steps!r}.")
    if not isinstance(lr, int | float) or not math.isfinite(lr) or lr <= 0:
        raise ConvsimError(f"lr must be a finite number > 0; got {lr!r}.")


def _norms(filters_GMCk: Tensor) -> Tensor:
    norms = filter_norms(filters_GMCk)
    return norms.reshape(*norms.shape, *[1] * (filters_GMCk.dim() - 2))


def _check_finite(values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"Iterative initialization met {value} in layer {name!r} at step {step}. The "
                "model's weights are as they were before. Check that layer's weights, lower lr, or "
                "leave the layer out with layers=…."
            )


@contextmanager
def _progress_bar(total: int | None) -> Iterator[Callable[[], Any]]:
    if total is None:
        yield lambda: None
        return
    rich = require("rich.progress", "lab")
    console = require("rich.console", "lab").Console(stderr=True)
    with rich.Progress(console=console) as bar:
        task = bar.add_task("Iterative initialization", total=total)
        yield lambda: bar.advance(task)
