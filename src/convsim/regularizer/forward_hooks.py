"""See what layers read and put out in a model's forward passes, as long as somebody looks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convsim.kernels import ConvLayer, is_convolution

Keep = Callable[[str, nn.Module, Tensor, Tensor], None]
"""Called with a layer's name, the module, its input and its output."""


class Watch:
    """Hand on the input and output of modules in train() mode, until `close` or until dropped.

    The model holds no reference to it, and a copy of the model is watched by nobody.

    Args:
        modules: The modules, each with the name it is known by.
        keep: Called after each of their forward passes.
        in_eval: Whether in eval() mode, too.
    """

    def __init__(
        self, modules: Iterable[tuple[str, nn.Module]], keep: Keep, *, in_eval: bool = False
    ) -> None:
        self.keep, self.in_eval = keep, in_eval
        handles = [
            module.register_forward_hook(_Hook(self, name), with_kwargs=True)
            for name, module in modules
        ]
        self.close = weakref.finalize(self, _remove, handles)


class _Hook:
    """A forward hook that is not copied or saved with the model."""

    def __init__(self, watch: Watch, name: str) -> None:
        self._watch, self._name = weakref.ref(watch), name

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        watch = self._watch()
        # nn.DataParallel's replicas would leave theirs on other devices.
        if watch is None or getattr(module, "_is_replica", False):
            return
        if not (module.training or watch.in_eval):
            return
        if _in_backward():  # activation checkpointing runs the module again
            return
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        watch.keep(self._name, module, tensors[0], output)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _NoHook, ()


class _NoHook:
    def __call__(self, *_: Any) -> None:
        """Do nothing."""


def modules_of(model: nn.Module, layers: Iterable[ConvLayer]) -> list[tuple[str, nn.Module]]:
    """List the modules that convolve with the layers' weights, which several may share."""
    return [
        (layer.name, module)
        for layer in layers
        for module in ([layer.module] if layer.parametrized else model.modules())
        if module is layer.module
        or (is_convolution(module) and module.weight is layer.module.weight)
    ]


def _in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
