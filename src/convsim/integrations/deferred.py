"""A regularizer whose model comes later: what callbacks are given, and what they all do."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from convsim.kernels import LayerFilter
from convsim.penalties import ActivationPenalty, Penalty, preset
from convsim.regularizer import Regularizer
from convsim.regularizer.coefficient import Coefficient, CoefficientLike


class DeferredRegularizer:
    """Hold a regularizer's options until there is a model to train.

    Args:
        penalty: As in `convsim.Regularizer`, and so the other arguments.
        coefficient: A number, a function of the optimizer's steps, or "auto".
        decay_steps: Over how many optimizer steps the coefficient falls to 0.
        layers: Which convolutions.

    Attributes:
        regularizer: The regularizer of the last training; None before it.
        log_name: What the penalty is logged as.
    """

    regularizer: Regularizer | None = None

    def __init__(
        self,
        penalty: str | Penalty | ActivationPenalty = "recommended",
        *,
        coefficient: CoefficientLike | None = None,
        decay_steps: int | None = None,
        layers: LayerFilter | Iterable[LayerFilter] | None = None,
    ) -> None:
        _ = Coefficient(coefficient or 0.0, decay_steps)  # refuses a bad one
        self.on_maps = isinstance(preset(penalty).penalty, ActivationPenalty)  # refuses a bad name
        layers = _to_be_read_twice(layers)
        self._make = partial(
            Regularizer,
            penalty=penalty,
            coefficient=coefficient,
            decay_steps=decay_steps,
            layers=layers,
        )
        name = penalty if isinstance(penalty, str) else type(penalty).__name__
        self.log_name = f"convsim/{name}" + ("" if layers is None else f"[{_spell(layers)}]")

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


def _to_be_read_twice(layers: Any) -> Any:
    """Keep what an iterator would give once only."""
    return layers if layers is None or isinstance(layers, str) or callable(layers) else [*layers]


def _spell(layers: Any) -> str:
    if isinstance(layers, list):
        return ",".join(map(_spell, layers))
    return layers if isinstance(layers, str) else getattr(layers, "__name__", "layers")


def _key(regularizer: Regularizer) -> str:
    """Tell regularizers of one training apart, the same way when it resumes."""
    kind = type(regularizer.penalty)
    penalty = kind.__qualname__ if kind.__repr__ is object.__repr__ else repr(regularizer.penalty)
    return f"{penalty} on {', '.join(layer.name for layer in regularizer.layers)}"


def _modules(regularizer: Regularizer) -> list[nn.Module]:
    return [layer.module for layer in regularizer.layers]
