"""Iterative initialization: minimise a penalty before training (Belmekki et al. 2024)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError, ConvsimWarning, NonFiniteError
from convsim.kernels import ConvLayer, KernelBank, LayerFilter, conv_layers
from convsim.penalties import ActivationPenalty, Penalty, preset
from convsim.precision import divisor
from convsim.similarity import filter_norms


@dataclass(frozen=True)
class InitializationHistory:
    """What `initialize_` did.

    Attributes:
        values: For each layer, its penalty before each step and after the last: steps + 1 numbers.
            The last is measured on the weight that the layer has in the end, which may differ from
            what the last step arrived at: a parametrization may project it, and half precision
            rounds it.
        norm_ratio: For each layer, the mean norm of its filters divided by the mean before; 1 where
            norms are kept.
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
) -> InitializationHistory:
    """Lower the similarity of a model's freshly drawn filters, in place, before training.

    Takes Adam steps on the convolutions' weights, in closed form and without data. The model is
    written to once, at the end: an interruption leaves the weights as they were. Nothing is drawn
    at random, so equal weights give equal results.

    Args:
        model: The model, its weights freshly initialised.
        penalty: "recommended" (crossed, unit Convolutional Similarity), "authors" (the published
            recipe: raw filters, norms free to shrink), another name in `convsim.PRESETS`, or a
            `Penalty` on the kernels alone.
        steps: Number of Adam steps; 0 only measures.
        lr: Adam's learning rate; 0.002 is the authors'.
        keep_norm: Whether each step ends by scaling every filter back to its first norm. If None,
            the preset decides: True for penalties that ignore norms, such as "recommended" and
            "crossed"; False for "authors" and others that act on norms.
        layers: Which convolutions, as in `convsim.conv_layers`. Frozen ones are left out, as are
            those on which the penalty cannot act.

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
    layers_and_banks = _copies(conv_layers(model, layers, frozen=False), minimised, steps > 0)
    if not layers_and_banks:
        warnings.warn(
            f"{minimised} cannot act on any selected layer: the model is left as it is.",
            ConvsimWarning,
            stacklevel=2,
        )
        return InitializationHistory({}, {})
    banks = {layer.name: bank for layer, bank in layers_and_banks}
    norms = {name: _norms(bank.filters) for name, bank in banks.items()}
    history = _minimise(minimised, banks, steps, lr, norms if keep_norm else None)
    if steps:
        changed = _write(layers_and_banks)
        banks |= changed
        values = minimised.values(list(changed.values()))
        history[-1] |= {name: value.item() for name, value in zip(changed, values, strict=True)}
    ratio = {
        name: (_norms(bank.filters).sum() / norms[name].sum()).item() if norms[name].any() else 1.0
        for name, bank in banks.items()
    }
    return InitializationHistory(
        {name: tuple(values[name] for values in history) for name in banks}, ratio
    )


@torch.no_grad()
def _copies(
    layers: Iterable[ConvLayer], minimised: Penalty, writing: bool
) -> list[tuple[ConvLayer, KernelBank]]:
    """Copy the filters of the layers that a penalty acts on."""
    found = []
    for layer in layers:
        bank = layer.bank()
        if minimised.acts_on(bank):
            if writing:
                layer.require_writable()
            found.append((layer, bank.with_filters(bank.filters.clone())))
    return found


@torch.no_grad()
def _minimise(
    minimised: Penalty,
    banks: dict[str, KernelBank],
    steps: int,
    lr: float,
    norms: dict[str, Tensor] | None,
) -> list[dict[str, float]]:
    """Take Adam steps on filters, each kept to its norm if given; return values before each."""
    parameters = [bank.filters for bank in banks.values()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    history: list[dict[str, float]] = []
    while True:
        for filters in parameters:
            filters.grad = torch.zeros_like(filters)
        values = minimised.add_gradients_(
            list(banks.values()), [filters.grad for filters in parameters], 1.0
        )
        numbers = torch.stack([value.cpu() for value in values]).tolist()
        history.append(dict(zip(banks, numbers, strict=True)))
        _check_finite(history[-1], step=len(history) - 1)
        if len(history) > steps:
            return history
        optimizer.step()
        for name, norm in (norms or {}).items():
            ratio_GM = norm / divisor(_norms(banks[name].filters))
            banks[name].filters.mul_(ratio_GM.to(banks[name].filters))


@torch.no_grad()
def _write(layers_and_banks: Iterable[tuple[ConvLayer, KernelBank]]) -> dict[str, KernelBank]:
    """Write filters to their layers, and return the banks of layers that now have others.

    A parametrization may project what it is given, and half precision rounds it. If one layer
    cannot be written, none is.
    """
    changed, before = {}, []
    try:
        for layer, bank in layers_and_banks:
            module = layer.module
            state = (*module.parameters(), *module.buffers())
            before += [(tensor, tensor.clone()) for tensor in state]
            layer.set_weight(bank.to_weight(bank.filters))
            now = layer.bank()
            if not torch.equal(now.filters, bank.filters):
                changed[layer.name] = now
    except BaseException:
        for tensor, value in before:
            tensor.copy_(value)
        raise
    return changed


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
