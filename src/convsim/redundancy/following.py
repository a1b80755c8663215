"""Follow a convolution's output through normalization and activation to where it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convsim.kernels import is_convolution

_NORMALIZATIONS = (
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm",
    "normalize",
)  # fmt: skip
_ACTIVATIONS = (
    "relu", "relu_", "relu6", "elu", "elu_", "selu", "selu_", "celu", "celu_", "leaky_relu",
    "leaky_relu_", "rrelu", "rrelu_", "prelu", "gelu", "silu", "mish", "softplus", "hardswish",
    "hardsigmoid", "hardtanh", "hardtanh_", "tanh", "tanh_", "sigmoid", "sigmoid_", "logsigmoid",
    "softsign", "softshrink", "hardshrink", "tanhshrink", "threshold", "threshold_", "clamp",
    "clamp_", "clamp_min", "clamp_max",
)  # fmt: skip
_NEUTRAL = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "contiguous", "to", "float", "double", "half", "bfloat16", "clone", "detach",
)  # fmt: skip
FOLLOWED = frozenset(
    getattr(owner, name)
    for owner in (torch, nn.functional, Tensor)
    for name in (*_NORMALIZATIONS, *_ACTIVATIONS, *_NEUTRAL)
    if hasattr(owner, name)
)
"""What is done to each map before the next layer reads it."""
_ARITHMETIC = frozenset(
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in (
        *("add", "sub", "mul", "div", "true_divide"),
        *("__add__", "__radd__", "__sub__", "__mul__", "__rmul__", "__truediv__"),
    )
    if hasattr(owner, name)
)
_IN_PLACE_OPERATORS = ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__")
_MIXING = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.Embedding)


@dataclass(eq=False)
class Followed:
    """An output on its way, and what to do where it is read.

    Attributes:
        tensor: What became of it, up to now.
        look: Called with it in the end.
        earlier: What it was before.
        inside: The module that it is in at the moment, which is followed as a whole.
    """

    tensor: Tensor
    look: Callable[[Tensor], None]
    earlier: list[Tensor] = field(default_factory=list)
    inside: nn.Module | None = None

    def step(self, tensor: Tensor) -> None:
        """Go on to what became of the output."""
        if tensor is not self.tensor:
            self.earlier.append(self.tensor)
        self.tensor = tensor


class Follower:
    """The outputs that are on their way, in one thread.

    An output is followed through functions of `FOLLOWED`, arithmetic with numbers, its product with
    a gate made of itself (Swish, Mish), and modules without weights that mix channels. What else
    reads it is where it is read: another layer, a sum, a concatenation, a pooling.
    """

    def __init__(self) -> None:
        self._followed: list[Followed] = []

    def start(self, output: Tensor, look: Callable[[Tensor], None]) -> None:
        """Begin to follow an output."""
        self._followed.append(Followed(output, look))

    def finish(self) -> None:
        """Look at all that nothing has read."""
        for one in [*self._followed]:
            self._arrive(one)

    def call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function, having looked at what it reads."""
        read = [one for one in self._reading(args, kwargs) if one.inside is None]
        steps = [one for one in read if _is_step(func, one, args, kwargs)]
        if _in_place(func):  # what it reads would be gone afterwards
            for one in read:
                if one not in steps:
                    self._arrive(one)
        result = func(*args, **kwargs)
        for one in read:
            whole = isinstance(result, Tensor) and result.shape == one.tensor.shape
            if one in steps and whole:
                one.step(result)
            elif _has_tensor(result):  # shapes and the like are not maps
                self._arrive(one)
        return result

    def enter(self, module: nn.Module, inputs: Iterable[Any]) -> None:
        """Note that a module begins which is followed as a whole."""
        for one in self._reading(inputs, {}):
            if one.inside is None:
                one.inside = module

    def leave(self, module: nn.Module, output: Any) -> None:
        """Note that it ended."""
        for one in [*self._followed]:
            if one.inside is not module:
                continue
            one.inside = None
            if isinstance(output, Tensor) and output.shape == one.tensor.shape:
                one.step(output)
            else:
                self._arrive(one)

    def _reading(self, args: Any, kwargs: Any) -> list[Followed]:
        if not self._followed:
            return []
        given = {id(value) for value in _flat((*args, *kwargs.values()))}
        return [
            one
            for one in self._followed
            if id(one.tensor) in given or any(id(x) in given for x in one.earlier)
        ]

    def _arrive(self, one: Followed) -> None:
        if one in self._followed:
            self._followed.remove(one)
            one.look(one.tensor)


def is_followed(module: nn.Module) -> bool:
    """Tell whether a module does nothing but normalize and activate, as far as its parts tell."""
    parts = [*module.modules()]
    return not any(is_convolution(part) or isinstance(part, _MIXING) for part in parts) and not any(
        parameter.dim() > 1 and max(parameter.shape) < parameter.numel()
        for parameter in module.parameters()
    )


def _is_step(func: Callable[..., Any], one: Followed, args: Any, kwargs: Any) -> bool:
    tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
    if not tensors:
        return False
    if func in FOLLOWED:
        return tensors[0] is one.tensor
    if func not in _ARITHMETIC:
        return False
    alone = len(tensors) == 1 and tensors[0] is one.tensor
    own = [*one.earlier, one.tensor]
    gated = len(tensors) == 2 and all(any(t is x for x in own) for t in tensors)
    return alone or (gated and any(t is one.tensor for t in tensors))


def _in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE_OPERATORS


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _has_tensor(result: Any) -> bool:
    return any(isinstance(value, Tensor) for value in _flat((result,)))
