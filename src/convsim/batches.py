"""Which part of a batch a model reads, and the error where the two do not fit."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from inspect import Parameter
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import ConvsimError

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
Forward = Callable[[nn.Module, Any], object]
"""Called with the model and a batch on its device; its result is ignored."""

_TARGETS = ("label", "labels", "target", "targets")
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def require_batches(batches: Any, caller: str, otherwise: str = "") -> Iterable[Batch]:
    """Refuse what is no iterable of batches, with what would make it one.

    Args:
        batches: What was given.
        caller: The function that takes it.
        otherwise: What else it takes.

    Raises:
        ConvsimError: If it is a tensor, a path, a data set or nothing to go through.
    """
    if isinstance(batches, Iterable) and not isinstance(batches, Tensor | str | Mapping):
        return batches
    remedy = "Give [batch]"
    if isinstance(batches, str | Path):
        remedy = (
            "Images in a folder are read by torchvision.datasets.ImageFolder and a DataLoader, or "
            "on the command line by --data"
        )
    elif hasattr(batches, "__getitem__") and not isinstance(batches, Tensor | Mapping):
        remedy = "Give torch.utils.data.DataLoader(dataset, batch_size=32)"
    raise ConvsimError(
        f"{caller}() takes an iterable of batches, such as [images]{otherwise}; got "
        f"{type(batches).__name__}. {remedy}."
    )


def copied(batch: Any, device: torch.device | None) -> Any:
    """Copy a batch's tensors to a device: a forward that works in place spares the caller's."""
    if isinstance(batch, Tensor):
        return batch.detach().to(device, copy=True)
    if isinstance(batch, MutableMapping):
        twin = copy.copy(batch)  # of its own type: a forward may ask for batch.pixel_values
        for key, value in batch.items():
            twin[key] = copied(value, device)
        return twin
    if isinstance(batch, list | tuple):
        values = [copied(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def run(model: nn.Module, batch: Any) -> None:
    """Run a model on what it takes of a batch.

    A tensor is passed as it is; of a sequence, as many of the first entries as ``forward``
    requires. Of a mapping, the entries that ``forward`` has parameters for are passed by name,
    labels only if it requires them. If those are not enough, "pixel_values" alone is passed.

    Raises:
        ConvsimError: If the batch has too little for a call, or the call fails on types that do not
            fit.
    """
    args, kwargs = _arguments(model, batch)
    with saying_why(model, batch, (*args, *kwargs.values())):
        model(*args, **kwargs)


@contextmanager
def saying_why(model: nn.Module, batch: Any, inputs: Sequence[Any]) -> Iterator[None]:
    """Say why a model failed on its inputs from a batch, where types and shapes tell.

    Raises:
        ConvsimError: With the remedy, instead of what the model raised.
    """
    try:
        yield
    except (ConvsimError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = _misfit(model, batch, inputs, str(error))
        if reason is None:
            raise
        raise ConvsimError(reason) from error


def only_input(model: nn.Module, batch: Any) -> Tensor:
    """Find the one tensor that a model takes from a batch, as `run` passes it.

    Raises:
        ConvsimError: If the batch has too little for a call, or the call takes more than one
            tensor.
    """
    args, kwargs = _arguments(model, batch)
    (given, *others) = (*args, *kwargs.values())
    if others or not isinstance(given, Tensor) or not given.dim():
        raise ConvsimError(
            f"{type(model).__name__} takes {1 + len(others)} inputs from a batch"
            f"{'' if isinstance(given, Tensor) else ', the first a ' + type(given).__name__}: "
            "here a network must take one tensor (N, …). Wrap the model in a module with one "
            "input."
        )
    return given


def images_of(batch: Any) -> tuple[int, Tensor]:
    """Find the images of a batch: its first part of three axes or more, or its first tensor.

    Returns:
        How many there are, and those from the first on that share its size: (N, …).
    """
    parts = _parts(batch)
    found = [part for part in parts if _is_input(part)]
    large = [part for part in found if isinstance(part, Sequence) or part.dim() > 2]
    if not found:
        raise ConvsimError(_unreadable(batch, ()))
    images = (large or found)[0]
    if isinstance(images, Tensor):
        return len(images) if images.dim() else 0, images
    alike = takewhile(lambda image: image.shape == images[0].shape, images)
    return len(images), torch.stack([*alike])


def _parts(batch: Any) -> tuple[Any, ...]:
    if isinstance(batch, Mapping):
        return tuple(batch.values())
    sequence = isinstance(batch, Sequence) and not isinstance(batch, str)
    return tuple(batch) if sequence else (batch,)


def _is_input(part: Any) -> bool:
    """Tell whether a part is a tensor, or a list of images as detectors take."""
    several = isinstance(part, list | tuple) and bool(part)
    return isinstance(part, Tensor) or (several and all(isinstance(x, Tensor) for x in part))


def _arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Choose the parts of a batch that `forward` is called with."""
    takes = _parameters(model)
    required = [x for x in takes if x.default is x.empty and x.kind not in _VARIADIC]
    if isinstance(batch, Mapping):
        named = {x.name: x for x in takes if x.kind is not x.POSITIONAL_ONLY and x.name in batch}
        if named and all(x.name in named for x in required):
            wanted = [n for n, x in named.items() if x in required or n not in _TARGETS]
            return (), {name: batch[name] for name in wanted}
        if "pixel_values" in batch:
            return (batch["pixel_values"],), {}
        raise ConvsimError(_unreadable(batch, required))
    parts = _parts(batch)
    if not parts or not _is_input(parts[0]):
        raise ConvsimError(_unreadable(batch, required))
    if len(required) > len(parts) or any(x.kind is x.KEYWORD_ONLY for x in required):
        names = ", ".join(x.name for x in required)
        raise ConvsimError(
            f"{type(model).__name__}.forward takes {names}, and the batch holds "
            f"{'one input' if len(parts) == 1 else f'{len(parts)} inputs'}: give batches "
            f"({names}), or forward=lambda model, batch: model(…)."
        )
    return parts[: max(1, len(required))], {}


def _parameters(model: nn.Module) -> list[Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a callable without a signature in Python
        return []


def _unreadable(batch: Any, required: Sequence[Parameter]) -> str:
    """Say what a batch must be, and what this one is."""
    names = f" or what forward takes ({', '.join(x.name for x in required)})" if required else ""
    holds, call = "", "…"
    if type(batch).__name__ == "ndarray":
        return "A batch is a numpy array: give torch.from_numpy(batch), of the model's dtype."
    if isinstance(batch, Mapping):
        holds = f" with {', '.join(map(repr, batch))}"
        call = f"batch[{next(iter(batch), '…')!r}]"
    return (
        "A batch must be a tensor, a sequence that starts with one, or a mapping with "
        f"'pixel_values'{names}; got a {type(batch).__name__}{holds}. Give "
        f"forward=lambda model, batch: model({call})."
    )


def _misfit(model: nn.Module, batch: Any, inputs: Sequence[Any], error: str) -> str | None:
    """Say why a model may have failed on inputs, if their types and shapes tell."""
    given = next((x for x in inputs if isinstance(x, Tensor)), None)
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if given is None or weights is None:
        return None
    other = [x for x in _parts(batch) if isinstance(x, Tensor) and x.dim() > 2]
    if given.dim() < 2 and other:
        return (
            f"The batch starts with a tensor of shape {tuple(given.shape)}, {given.dtype}, as "
            "labels have: give (images, labels), or to measure() "
            "forward=lambda model, batch: model(batch[1])."
        )
    if given.dim() < 2 and not given.is_floating_point():
        return (
            f"A batch is a tensor of shape {tuple(given.shape)}, {given.dtype}, as labels have: "
            "give a sequence of batches, as [(images, labels)], not one batch."
        )
    if given.dtype == weights:
        # As torch's convolutions say it, of these very inputs and not of what was made of them.
        own = str(list(given.shape[1:]))[1:]
        return _misshapen(model, given) if own in error else None
    if not re.search("type|implemented", error):
        return None
    remedy = f"images.to({weights})" if given.is_floating_point() else "images.float() / 255"
    return (
        f"The batch is {given.dtype} and the model's weights are {weights}: give the images as in "
        f"training, such as {remedy}."
    )


def _misshapen(model: nn.Module, given: Tensor) -> str | None:
    """Say what a model's first convolution takes, if inputs are something else."""
    convolutions = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    )
    name, first = next(convolutions, ("", None))
    if first is None:
        return None
    axes, channels = 2 + len(first.kernel_size), first.in_channels
    said = (
        f"The batch has shape {tuple(given.shape)}, and the first convolution, "
        f"{name or type(first).__name__!r}, takes"
    )
    if given.dim() != axes:
        sizes = ", ".join(("D", "H", "W")[5 - axes :])
        return f"{said} (N, {channels}, {sizes}): {axes} axes, of which the first counts images."
    if given.shape[1] == channels:
        return None
    remedy = f"give images of {channels} channels"
    if given.shape[-1] == channels:
        remedy = "put the channels first, images.movedim(-1, 1)"
    elif given.shape[1] == 1:
        remedy += f", of grey ones images.repeat_interleave({channels}, 1)"
    return f"{said} {channels} channels, the second axis: {remedy}."
