"""See what layers put out in a model's forward passes, as long as somebody looks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Look = Callable[[str, nn.Module, Tensor], None]
"""Called with a layer's name, the module and what it put out."""


class Watch:
    """Hand on what modules put out where gradients are recorded, until `close` or until dropped.

    The model holds no reference to it, and a copy of the model is watched by nobody.

    Args:
        modules: The modules, each with the name it is known by.
        look: Called after each of their forward passes.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]], look: Look) -> None:
        self.look = look
        handles = [module.register_forward_hook(_Hook(self, name)) for name, module in modules]
        self.close = weakref.finalize(self, _remove, handles)


class _Hook:
    """A forward hook that is not copied or saved with the model."""

    def __init__(self, watch: Watch, name: str) -> None:
        self._watch, self._name = weakref.ref(watch), name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        watch = self._watch()
        # nn.DataParallel's replicas would leave theirs on other devices.
        if watch is None or "_is_replica" in module.__dict__:
            return
        # Activation checkpointing runs a module again in the backward pass.
        if torch.is_grad_enabled() and not _in_backward():
            watch.look(self._name, module, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _look_away

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _get_look_away, ()


def _look_away(self, input: tuple[Tensor], output: Tensor) -> None:  # type: ignore[no-untyped-def]
    """Do nothing, in TorchScript too."""
    return None


def _get_look_away() -> Any:
    return _look_away


def _in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
