"""A regularizer whose model comes later: what callbacks are given, and what they all do."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from convsim.kernels import LayerFilter
from convsim.penalties import Penalty
from convsim.regularizer import Regularizer
from convsim.regularizer.coefficient import CoefficientLike


class RegularizerLater:
    """Hold a regularizer's options until there is a model to train.

    Args:
        penalty: As in `convsim.Regularizer`, and so the other arguments.
        coefficient: A number, a function of the epoch, or "auto".
        layers: Which convolutions.

    Attributes:
        regularizer: The regularizer of the last training; None before it.
    """

    regularizer: Regularizer | None = None

    def __init__(
        self,
        penalty: str | Penalty = "recommended",
        *,
        coefficient: CoefficientLike | None = None,
        layers: LayerFilter | Iterable[LayerFilter] | None = None,
    ) -> None:
        self._make = partial(Regularizer, penalty=penalty, coefficient=coefficient, layers=layers)

    def begin(self, model: nn.Module, states: dict[str, Any]) -> None:
        """Find the layers of a model, once it is on its device, and go on from a checkpoint's."""
        self.end()
        before, self.regularizer = self.regularizer, self._make(model)
        if before is not None and _modules(before) == _modules(self.regularizer):
            self.regularizer.load_state_dict(before.state_dict())  # the same training goes on
        self.load_from(states)

    def load_from(self, states: dict[str, Any]) -> None:
        """Take the state out of a checkpoint's, if it is there."""
        if self.regularizer is not None and (key := _key(self.regularizer)) in states:
            self.regularizer.load_state_dict(states[key])

    def save_to(self, states: dict[str, Any]) -> None:
        """Put the state into a checkpoint's, which may hold those of other regularizers."""
        if self.regularizer is not None:
            states[_key(self.regularizer)] = self.regularizer.state_dict()

    def end(self) -> None:
        """Leave the model's forward passes alone again."""
        if self.regularizer is not None:
            self.regularizer.remove()


def _key(regularizer: Regularizer) -> str:
    """Tell regularizers of one training apart, the same way when it resumes."""
    kind = type(regularizer.penalty)
    penalty = kind.__qualname__ if kind.__repr__ is object.__repr__ else repr(regularizer.penalty)
    return f"{penalty} on {', '.join(layer.name for layer in regularizer.layers)}"


def _modules(regularizer: Regularizer) -> list[nn.Module]:
    return [layer.module for layer in regularizer.layers]
