"""The weight of a penalty: a number, a schedule, or what the first step's gradients ask for."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from convsim.errors import ConvsimError, ConvsimWarning

CoefficientLike = float | Callable[[int], float] | Literal["auto"]
"""A number ≥ 0, a function of the number of steps, or "auto"."""


class Coefficient:
    """A penalty's coefficient, which with "auto" is found once.

    Args:
        given: The number, schedule or "auto".
        decay_steps: Over how many steps it falls to 0 in a line; None to keep it.
    """

    def __init__(self, given: CoefficientLike, decay_steps: int | None = None) -> None:
        if decay_steps is not None and (not isinstance(decay_steps, int) or decay_steps < 1):
            raise ConvsimError(f"decay_steps must be an integer ≥ 1; got {decay_steps!r}.")
        self._given = float(given) if isinstance(given, numbers.Real) else given
        self._decay_steps = decay_steps
        self._found: float | None = None
        self.automatic = isinstance(given, str) and given == "auto"
        _ = self.at(0)  # refuse a bad one now

    @property
    def found(self) -> float | None:
        """With "auto", the number that was found; None before."""
        return self._found

    @property
    def pending(self) -> bool:
        """Whether it is still to be found."""
        return self.automatic and self._found is None

    def at(self, steps: int) -> float:
        """Return the coefficient after that many steps; 0 while it is to be found.

        Raises:
            ConvsimError: If it is not a finite number ≥ 0.
        """
        left = 1.0 if self._decay_steps is None else max(0.0, 1 - steps / self._decay_steps)
        return left * self._without_decay(steps)

    def _without_decay(self, steps: int) -> float:
        if self.automatic:
            return self._found or 0.0
        value: Any = self._given(steps) if callable(self._given) else self._given
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        # A tuple of types: torch.compile of torch < 2.7 does not trace a union.
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ConvsimError(
                f"coefficient must be a finite number ≥ 0; got {value!r} at step {steps}. A "
                'function of the step and "auto" are allowed too.'
            )
        return float(value)

    def find(self, loss: float, penalty: float) -> None:
        """Make the penalty's gradient as long as the loss'.

        It stays pending if a length is not finite, as in a step that a GradScaler skips, or, with a
        warning, if one is 0.

        Args:
            loss: The length of the loss' gradient.
            penalty: The length of the penalty's.
        """
        found = loss / penalty if penalty > 0 else 0.0
        if 0 < found < math.inf:
            self._found = found
        elif math.isfinite(loss):
            warnings.warn(
                'coefficient="auto" is not found yet, and nothing was added: the gradient of the '
                "loss or of the penalty is 0. It is tried again at the next step.",
                ConvsimWarning,
                stacklevel=3,
            )

    def resume(self, found: float | None) -> None:
        """Take what a checkpoint says was found."""
        self._found = found
