"""The inputs that a network is shrunk on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from convsim.batches import Batch, only_input, require_batches, saying_why
from convsim.errors import ConvsimError, ConvsimWarning, NonFiniteError

_FEW = 32
"""Fewer images than these are warned of."""


def calibration_batches(model: nn.Module, batches: Iterable[Batch]) -> list[Tensor]:
    """Take what a model reads out of batches as `convsim.measure` does, and keep it on the CPU.

    Images of a size are dealt out anew, so that each batch is like all of that size.
    The model, in ``eval()`` mode, is run on the first images.

    Raises:
        ConvsimError: If there is none, or one is of another kind or does not fit the model, or the
            model takes several tensors.
        NonFiniteError: If one holds NaN or infinity.
    """
    found: list[Tensor] = []
    for batch in require_batches(batches, "shrink"):
        inputs = only_input(model, batch).detach()
        if len(inputs) and not found:
            few = inputs[:2].to(device_of(model), copy=True)  # a model may work in place
            with torch.no_grad(), saying_why(model, batch, [inputs]):
                model(few)
        if len(inputs):
            found.append(inputs.cpu())
            _require_alike(found[0], found[-1])
    if not found:
        raise ConvsimError(
            "shrink() needs calibration images, a few hundred or more; got none. Labels are not "
            "needed."
        )
    for inputs in found:
        if inputs.is_floating_point() and not inputs.isfinite().all():
            raise NonFiniteError(
                "The calibration images hold NaN or infinite values. Leave those images out."
            )
    if (count := sum(map(len, found))) < _FEW:
        warnings.warn(
            f"Shrinking on {count} calibration images, which say little of others: give a few "
            "hundred or more. Labels are not needed.",
            ConvsimWarning,
            stacklevel=3,
        )
    return _dealt(found)


def _require_alike(first: Tensor, later: Tensor) -> None:
    if (first.dtype, first.shape[1:2], first.dim()) != (later.dtype, later.shape[1:2], later.dim()):
        raise ConvsimError(
            f"The calibration batches differ: the first is {first.dtype} of shape "
            f"{tuple(first.shape)}, a later one {later.dtype} of shape {tuple(later.shape)}. Give "
            "a sequence of batches, as [images] or [(images, labels)]."
        )


def _dealt(batches: list[Tensor]) -> list[Tensor]:
    """Deal images of one size out to the batches at random: layers are fitted to some batches each.

    Of images sorted by class, a batch as it comes would show a layer one class alone. The draw is
    the same every time, and the first image, of which pictures are kept, stays the first.
    """
    sizes: dict[torch.Size, list[Tensor]] = {}
    for batch in batches:
        sizes.setdefault(batch.shape[1:], []).append(batch)
    batches.clear()  # images may be many
    draw = torch.Generator().manual_seed(0)
    for alike in sizes.values():
        count = len(alike)
        if count == 1:
            batches += alike
            continue
        together = torch.cat(alike)
        alike.clear()
        others = 1 + torch.randperm(len(together) - 1, generator=draw)
        drawn = torch.cat([torch.zeros(1, dtype=torch.long), others])
        batches += [together[some] for some in drawn.split(-(-len(together) // count))]
    return batches


def require_shrinkable(model: nn.Module) -> None:
    """Refuse a model whose weights are not numbers that can be computed with.

    Raises:
        ConvsimError: If it is no module, has no parameters, lies on the meta device, is quantized,
            is not initialised or is sharded over processes.
        NonFiniteError: If a parameter holds NaN or infinity.
    """
    if not isinstance(model, nn.Module):
        raise ConvsimError(f"A model must be a torch.nn.Module; got {type(model).__name__}.")
    for name, module in model.named_modules():
        kind = type(module).__module__
        if "quantized" in kind or "quantization" in kind:
            raise ConvsimError(
                f"Module {name!r} ({type(module).__name__}) is quantized: its weights cannot be "
                "solved for. Shrink the model first, and quantize the smaller one."
            )
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ConvsimError(f"The model ({type(model).__name__}) has no parameters to shrink.")
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ConvsimError(
                f"Parameter {name!r} is lazy and not initialised: run one forward pass first."
            )
        if parameter.is_meta:
            raise ConvsimError(
                f"Parameter {name!r} is on the meta device and holds no numbers. Load the trained "
                "weights first, as with model.to_empty(device='cpu') and load_state_dict."
            )
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise NonFiniteError(
                f"Parameter {name!r} holds NaN or infinite values. Load weights that were trained."
            )
        if type(parameter.data).__name__ == "DTensor":
            raise ConvsimError(
                f"Parameter {name!r} is sharded over processes (a DTensor). Gather the model on "
                "one process first, as with full_tensor()."
            )
    if not any(p.is_floating_point() for p in parameters.values()):
        raise ConvsimError(
            "The model's parameters are no floating-point numbers: it is quantized. Shrink the "
            "model first, and quantize the smaller one."
        )


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    return next(model.parameters()).device
