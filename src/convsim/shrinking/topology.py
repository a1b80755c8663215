"""What becomes of a layer's output: normalized by a BatchNorm, added to a tensor, rectified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from convsim.shrinking.weights import is_linear_in_windows, reads_maps

_ADDITIONS = frozenset(
    {
        torch.add,
        Tensor.add,
        Tensor.add_,
        Tensor.__add__,
        Tensor.__radd__,
        Tensor.__iadd__,
    }
)
_RECTIFIERS = frozenset({F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6})


@dataclass(frozen=True)
class Fate:
    """What becomes of a layer's output.

    Attributes:
        norm: The BatchNorm that reads the output and nothing else.
        addition: Which of the network's additions, counted in the order of computation, has the
            output, normalized if `norm` is given, as a summand of its own shape.
        linear: Whether the output is the layer's weight times its windows.
        rectified: Whether nothing but a ReLU reads the output, normalized and added as above.
    """

    norm: str | None
    addition: int | None
    linear: bool
    rectified: bool = False


class Seen:
    """A tensor as it was at a moment."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def one_of(self, *others: Seen) -> bool:
        """Tell whether it is one of others, unchanged."""
        return any(self.tensor is x.tensor and self.version == x.version for x in others)


class Additions(TorchFunctionMode):
    """Counts the sums of two tensors in a forward pass, and shows each.

    Args:
        look: Called with a sum's number, what is added, and the sum.
        read: Called with every function that puts out tensors: whether it is a ReLU, and the
            tensors that it is given, as they were before.
    """

    def __init__(
        self,
        look: Callable[[int, Seen, Seen, Tensor], None],
        read: Callable[[bool, list[Seen]], None] | None = None,
    ) -> None:
        super().__init__()
        self.count = 0
        self._look, self._read = look, read
        self._aside = False

    def wait(self) -> None:
        """Count nothing until `go_on`."""
        self._aside = True

    def go_on(self, count: int) -> None:
        """Count from here on, as if there had been so many sums."""
        self._aside, self.count = False, count

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Count nothing inside the block: what a hook computes is none of the network's."""
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self._read is not None and not self._aside:
            seen = [*map(Seen, _tensors_in((args, kwargs)))]
            result = self._summed(func, args, kwargs or {})
            if _tensors_in(result):
                self._read(_rectifies(func, args, kwargs or {}), seen)
            return result
        return self._summed(func, args, kwargs or {})

    def _summed(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        tensors = not kwargs and all(isinstance(argument, Tensor) for argument in args)
        if self._aside or func not in _ADDITIONS or not tensors:
            return func(*args, **kwargs)
        # What is added in place is overwritten: its version tells it from what it was before.
        first, second = map(Seen, args)
        result = func(*args)
        with self.aside():
            self._look(self.count, first, second, result)
        self.count += 1
        return result


def fates(model: nn.Module, inputs: Tensor) -> dict[str, Fate]:
    """Follow the outputs of a network's layers, in the order in which it computes them.

    Layers that are used more than once are left out.

    Args:
        model: The network, in ``eval()`` mode.
        inputs: A small batch.
    """
    outputs: dict[str, Seen] = {}
    norms: dict[str, str] = {}
    normalized: dict[str, Seen] = {}
    added: dict[str, int] = {}
    sums: dict[int, Seen] = {}
    reads: list[tuple[bool, list[Seen]]] = []
    linear: dict[str, bool] = {}
    calls: dict[str, int] = {}

    def after_layer(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        outputs[name] = Seen(output)
        with additions.aside():
            linear[name] = is_linear_in_windows(module, args[0], output)

    def after_norm(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        for layer, seen in outputs.items():
            if seen.one_of(Seen(args[0])):
                norms[layer] = name
                if _is_affine(module):
                    normalized[layer] = Seen(output)

    def after_addition(number: int, first: Seen, second: Seen, result: Tensor) -> None:
        sums[number] = Seen(result)
        for layer, seen in outputs.items():
            end = normalized.get(layer) if layer in norms else seen
            if end is not None and end.tensor.shape == result.shape and end.one_of(first, second):
                added.setdefault(layer, number)

    def readers(read: Seen | None) -> list[bool]:
        return [by_relu for by_relu, seen in reads if read is not None and read.one_of(*seen)]

    def rectified(layer: str) -> bool:
        path = [outputs[layer], *([normalized.get(layer)] if layer in norms else [])]
        path += [sums[added[layer]]] if layer in added else []
        *before, last = map(readers, path)
        return all(len(one) == 1 for one in before) and bool(last) and all(last)

    additions = Additions(after_addition, lambda by_relu, seen: reads.append((by_relu, seen)))
    handles = []
    for name, module in model.named_modules():
        hook = after_layer if reads_maps(module) else None
        if getattr(module, "running_mean", None) is not None:
            hook = after_norm
        if hook is not None:
            handles.append(module.register_forward_hook(_bound(hook, name)))
    try:
        with torch.no_grad(), additions:
            reads.append((False, [*map(Seen, _tensors_in(model(inputs)))]))
    finally:
        for handle in handles:
            handle.remove()
    for layer in [one for one in norms if len(readers(outputs[one])) > 1]:
        del norms[layer]  # others read the output too, as it is
        added.pop(layer, None)
    return {
        name: Fate(norms.get(name), added.get(name), linear[name], rectified(name))
        for name in outputs
        if calls[name] == 1
    }


def _tensors_in(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _rectifies(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a function sets to zero what is negative, as ReLU and ReLU6 do."""
    if func is F.hardtanh:
        return bool([*args[1:2], kwargs.get("min_val")][0] == 0)
    return func in _RECTIFIERS


def _is_affine(norm: Any) -> bool:
    """Tell whether a BatchNorm does nothing further, as one that activates as well does."""
    plain = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)
    return type(norm).forward in plain


def norm_scale(norm: Any) -> Tensor:
    """Return γ/σ, by which a BatchNorm multiplies each channel in ``eval()`` mode."""
    scale: Tensor = (norm.running_var + norm.eps).rsqrt()
    return (scale if norm.weight is None else scale * norm.weight).detach()


def _bound(
    hook: Callable[[str, nn.Module, Any, Tensor], None], name: str
) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda module, args, output: hook(name, module, args, output)
