"""Load trained weights into a model, without unpickling anything but tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsim.errors import DataError

_NESTS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("", "module.", "model.", "_orig_mod.", "model._orig_mod.", "module.model.")


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a model, in place.

    Args:
        model: The model.
        path: A ``.safetensors`` file, or a checkpoint of ``torch.save`` with tensors and plain
            values alone: a state dict, or one under "state_dict", "model_state_dict", "model" or
            "net". A prefix that DataParallel, Lightning or torch.compile put before every name is
            dropped, and with it the entries that lack it.

    Raises:
        DataError: If the file is missing or unreadable, would run code when loaded, or holds other
            names or shapes than the model; the model is then as it was.
    """
    tensors = _read(path)
    wanted = model.state_dict()
    for prefix in _PREFIXES:
        stripped = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        if stripped.keys() == wanted.keys():
            break
    else:
        missing, extra = sorted(wanted.keys() - tensors), sorted(tensors.keys() - wanted.keys())
        raise DataError(
            f"{path} has other weights than the model: {_some(missing)} missing, {_some(extra)} "
            "that the model has not. Give the model's own options, such as --classes or --width."
        )
    for name, value in wanted.items():
        if stripped[name].shape != value.shape:
            raise DataError(
                f"{path}: {name!r} has shape {tuple(stripped[name].shape)}, the model's "
                f"{tuple(value.shape)}. Give the model's own options, such as --classes or --width."
            )
    model.load_state_dict(stripped)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"There is no weights file {str(path)!r}. Check the path.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415 - needs the lab extra

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as weights alone ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}). Save the state "
            "dict with safetensors.torch.save_file."
        ) from error
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise DataError(f"{path} holds no state dict: save model.state_dict().")
    return dict(content)


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3])) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
