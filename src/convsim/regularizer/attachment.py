"""The place where a regularizer adds its penalty by itself."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from torch.utils.hooks import RemovableHandle

from convsim.kernels import ConvLayer
from convsim.penalties import ActivationPenalty, Penalty


class Attached(Protocol):
    """What is attached: a `convsim.Regularizer`."""

    layers: tuple[ConvLayer, ...]
    penalty: Penalty | ActivationPenalty

    def remove(self) -> None:
        """Leave what it is attached to."""


_ATTACHED: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Attached]] = weakref.WeakKeyDictionary()


class Attachment:
    """The hooks on one target at a time; true while there are any."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def __bool__(self) -> bool:
        return bool(self._handles)

    def move(
        self, regularizer: Attached, target: object, handles: Iterable[RemovableHandle]
    ) -> None:
        """Leave the target before, and take the place of others of this penalty on these layers.

        So a notebook's cell may be run again.
        """
        self.remove()
        others = _ATTACHED.setdefault(target, weakref.WeakSet())
        modules = {layer.module for layer in regularizer.layers}
        for other in list(others):
            same = other is not regularizer and other.penalty == regularizer.penalty
            if same and {layer.module for layer in other.layers} == modules:
                other.remove()
        others.add(regularizer)
        self._handles = [*handles]

    def remove(self) -> None:
        """Leave the target."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
