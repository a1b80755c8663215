"""A model in ``eval()`` mode for a while, and afterwards as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import NoneType

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, NoneType)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in ``eval()`` mode, without gradients, and leave it as it was.

    A module may do more in ``train()`` than set a flag, as LoRA merges its weights, and more in
    ``forward`` than compute, as observers count. Each goes back to its mode by its own ``train()``,
    and then its weights, buffers and plain attributes to what they were, to the bit. Random numbers
    that are drawn meanwhile leave torch's generators as they were. What torch.compile has compiled
    runs eagerly, so that hooks are called.

    Memory: a copy of the weights and buffers.
    """
    modules = [_Remembered(module) for module in model.modules()]
    tensors = [
        (tensor, tensor.clone())
        for tensor in (*model.parameters(), *model.buffers())
        if type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
    ]
    gpus = {tensor.device for tensor, _ in tensors if tensor.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(list(gpus)), _eagerly():
        try:
            model.eval()
            yield
        finally:
            for module in modules:  # parents first: their train() is their children's too
                module.restore_mode()
            for module in modules:
                module.restore_attributes()
            for tensor, value in tensors:
                if tensor.shape != value.shape:  # observers resize theirs
                    tensor.data = value
                elif not torch.equal(tensor, value):
                    tensor.copy_(value)


class _Remembered:
    """A module's mode, its buffers, and those of its attributes that are plain values."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._mode = module.training
        self._buffers = dict(module._buffers.items())
        # torch's wrappers, such as DistributedDataParallel, keep flags that are theirs to change.
        own = not type(module).__module__.startswith("torch.")
        self._plain = {k: v for k, v in vars(module).items() if own and isinstance(v, _PLAIN)}

    def restore_mode(self) -> None:
        if self._module.training != self._mode:
            self._module.train(self._mode)

    def restore_attributes(self) -> None:
        vars(self._module).update(self._plain)
        self._module.training = self._mode
        if isinstance(self._module._buffers, dict):  # a scripted module's cannot be replaced
            self._module._buffers.clear()
            self._module._buffers.update(self._buffers)


def _eagerly() -> AbstractContextManager[object]:
    """Run what is compiled as it was before; if anything is, torch's compiler is loaded."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()
