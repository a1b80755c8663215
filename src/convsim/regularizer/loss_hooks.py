"""Have a criterion, or a model that returns its loss, add a penalty by itself."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convsim.errors import ConvsimError

Addend = Callable[[dict[str, Any]], Tensor | None]
"""Called with a forward pass' keywords: what is added to its loss, or None."""


def add_to_losses(module: nn.Module, addend: Addend) -> RemovableHandle:
    """Add something to every loss that a module returns while gradients are recorded.

    A loss is the tensor of one number that the module returns, the first of a tuple, or the "loss"
    of a mapping.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled() or (added := addend(kwargs)) is None:
            return None
        if isinstance(output, Tensor):
            return _sum(module, output, added)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (_sum(module, output[0], added), *output[1:])
        if isinstance(output, MutableMapping) and isinstance(output.get("loss"), Tensor):
            output["loss"] = _sum(module, output["loss"], added)
            return output
        raise ConvsimError(
            f"{type(module).__name__} returned a {type(output).__name__} without a loss that the "
            "penalty could be added to. Attach the regularizer to the criterion, or use "
            "loss + regularizer(), in Hugging Face's Trainer by RegularizerTrainerMixin."
        )

    return module.register_forward_hook(hook, with_kwargs=True)


def join_(loss: Tensor, added: Tensor) -> None:
    """Have a loss' backward pass be that of loss + added, and leave its number as it is."""
    with torch.autograd._unsafe_preserve_version_counter(loss):  # type: ignore[attr-defined]
        _Beside.apply(loss, added)  # type: ignore[no-untyped-call]


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, added: Tensor) -> Tensor:
        ctx.mark_dirty(loss)
        ctx.like = added.new_empty(0)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.to(ctx.like).reshape(())


def _sum(module: nn.Module, loss: Tensor, added: Tensor) -> Tensor:
    if loss.numel() != 1:
        raise ConvsimError(
            f"{type(module).__name__} returned a tensor of shape {tuple(loss.shape)}; the penalty "
            "is added to a loss of one number. Use a reduction, or loss + regularizer(), in "
            "Hugging Face's Trainer by RegularizerTrainerMixin."
        )
    return loss + added.to(loss) if loss.requires_grad else loss
