"""A regularizer whose model comes later: what callbacks are given, and what they all do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

from torch import nn

from convsim.kernels import LayerFilter
from convsim.penalties import Penalty
from convsim.regularizer import Regularizer


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
        coefficient: float | Callable[[int], float] | Literal["auto"] | None = None,
        layers: LayerFilter | Iterable[LayerFilter] | None = None,
    ) -> None:
        self._make = partial(Regularizer, penalty=penalty, coefficient=coefficient, layers=layers)

    def begin(self, model: nn.Module) -> None:
        """Find the layers of a model, once it is on its device."""
        self.end()
        self.regularizer = self._make(model)

    def end(self) -> None:
        """Leave the model's forward passes alone again."""
        if self.regularizer is not None:
            self.regularizer.remove()
