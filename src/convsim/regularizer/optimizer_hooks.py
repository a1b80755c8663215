"""Have an optimizer ask for a penalty's gradient before every one of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from convsim.errors import ConvsimError
from convsim.kernels import ConvLayer


def before_every_step(
    optimizer: Optimizer, layers: Iterable[ConvLayer], backward: Callable[[float], Tensor]
) -> RemovableHandle:
    """Call ``backward(scale)`` when the gradients of a step are ready, and before it is taken.

    `scale` is what the gradients are still multiplied by: 1, but for a fused optimizer that
    unscales a GradScaler's gradients inside its step. Where the step is given a closure, each call
    of it is followed by one of `backward`, and the loss it returns has the penalty added.

    Raises:
        ConvsimError: As `owns_layers`; if the optimizer steps no layer, or calls no hooks.
    """
    optimizer = _inner(optimizer)
    kind = type(optimizer).__name__
    if not owns_layers(optimizer, layers):
        raise ConvsimError(
            f"{kind} steps none of the regularized layers' weights. Attach the regularizer to the "
            "optimizer that was made from this model's parameters, after the model was wrapped."
        )

    @torch.enable_grad()
    def hook(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            scale = getattr(optimizer, "grad_scale", None)
            backward(1.0 if scale is None else float(scale))
            return None

        @torch.enable_grad()
        def with_penalty() -> Any:
            loss = closure()
            value = backward(1.0)
            return None if loss is None else loss + value

        rest = {name: value for name, value in kwargs.items() if name != "closure"}
        return (args[0], with_penalty, *args[2:]), rest

    return optimizer.register_step_pre_hook(hook)


def after_every_step(optimizer: Optimizer, call: Callable[[], object]) -> RemovableHandle:
    """Call something after each step of an optimizer."""

    def hook(*_: object) -> None:
        call()

    return _inner(optimizer).register_step_post_hook(hook)


def grad_scale(scaler: Any, optimizer: Any) -> float:
    """Tell what an optimizer's gradients are still multiplied by: a GradScaler's scale, or 1."""
    if scaler is None or not scaler.is_enabled():
        return 1.0
    stage = scaler._per_optimizer_states[id(optimizer)]["stage"]
    return float(scaler.get_scale()) if stage is OptState.READY else 1.0


def owns_layers(optimizer: Optimizer, layers: Iterable[ConvLayer]) -> bool:
    """Tell whether an optimizer steps the layers' weights: all of them, or none.

    Raises:
        ConvsimError: If it steps some and not others, whose gradients would be added too often.
    """
    mine = _parameters(optimizer)
    stepped = {layer.name: any(id(p) in mine for p in layer.parameters()) for layer in layers}
    if len(set(stepped.values())) > 1:
        missing = next(name for name, found in stepped.items() if not found)
        raise ConvsimError(
            f"{type(optimizer).__name__} steps some of the regularized layers and not others, such "
            f"as {missing!r}. Make one regularizer for each optimizer, with layers=…."
        )
    return all(stepped.values())


def _inner(optimizer: Any) -> Optimizer:
    """Find the optimizer that takes the steps, inside a wrapper or a two-step method."""
    if not hasattr(optimizer, "step") or isinstance(optimizer, LRScheduler):
        raise ConvsimError(
            "attach() takes a criterion, a model that returns its loss, or the optimizer that "
            f"steps the model; got {type(optimizer).__name__}."
        )
    found: Any = optimizer
    while (wrapped := _wrapped(found)) is not None:
        found = wrapped
    if hasattr(found, "second_step"):
        raise ConvsimError(
            f"{type(optimizer).__name__} takes its steps in first_step() and second_step(), which "
            "call no hooks. Call regularizer.backward_() before second_step() instead."
        )
    if not getattr(type(found).step, "hooked", False):
        raise ConvsimError(
            f"{type(optimizer).__name__} is no torch.optim.Optimizer that calls hooks before its "
            "steps. Call regularizer.backward_() before optimizer.step() instead."
        )
    stepping: Optimizer = found
    return stepping


def _wrapped(optimizer: Any) -> Optimizer | None:
    """Find an optimizer that another one has, under whatever name, take its steps."""
    mine = _parameters(optimizer)
    held = [one for one in vars(optimizer).values() if isinstance(one, Optimizer)]
    return next((one for one in held if mine <= _parameters(one)), None)


def _parameters(optimizer: Any) -> set[int]:
    return {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
