"""The weight of a penalty: a number, a schedule, or what the first step's gradients ask for."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from convsim.errors import ConvsimError, ConvsimWarning
from convsim.kernels import KernelBank
from convsim.kernels.sharding import norm

CoefficientLike = float | Callable[[int], float] | Literal["auto"]
"""A number ≥ 0, a function of the number of steps or epochs, or "auto"."""

_NOTHING_LEFT = 1e-5  # of a penalty's value, by which its gradient could lower it: rounding


class Coefficient:
    """A penalty's coefficient, which with "auto" is found once.

    Attributes:
        found: With "auto", the number that was found; None before.
    """

    found: float | None = None

    def __init__(self, given: CoefficientLike) -> None:
        self._given = float(given) if isinstance(given, numbers.Real) else given
        self.automatic = isinstance(given, str) and given == "auto"
        _ = self.at(0)  # refuse a bad one now

    @property
    def pending(self) -> bool:
        """Whether it is still to be found."""
        return self.automatic and self.found is None

    def at(self, steps: int) -> float:
        """Return the coefficient after that many steps; 0 while it is to be found.

        Raises:
            ConvsimError: If it is no finite number ≥ 0.
        """
        if self.automatic:
            return self.found or 0.0
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

    def find(
        self,
        losses: Sequence[Tensor],
        gradients: Sequence[Tensor],
        banks: Sequence[KernelBank],
        value: Tensor,
        scale: float,
    ) -> None:
        """Make the penalty's gradient as long as the loss' gradient, over these layers together.

        It is left pending where the loss' gradient is not finite, as in a step that a GradScaler
        skips; and with a warning where it is 0, or the penalty has nothing left to lower.

        Args:
            losses: The loss' gradient, by weight, multiplied by `scale`.
            gradients: The penalty's gradient, by layer.
            banks: The layers' filters.
            value: The penalty.
            scale: A GradScaler's scale.
        """
        shares = [bank.share for bank in banks]
        loss, own, filters = (
            norm(losses),
            norm(gradients, shares),
            norm([bank.filters for bank in banks], shares),
        )
        found = loss.item() / scale / own.item() if own > 0 else 0.0
        if own * filters > _NOTHING_LEFT * value.abs().to(own) and 0 < found < math.inf:
            self.found = found
        elif loss.isfinite():
            warnings.warn(
                'coefficient="auto" is not found yet, and nothing was added: the gradient of the '
                "loss or of the penalty is 0. It is tried again at the next step.",
                ConvsimWarning,
                stacklevel=3,
            )
