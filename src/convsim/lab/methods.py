"""What a comparison compares: a penalty as regularizer, as initialization, as both, or none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from convsim.errors import ConvsimError
from convsim.penalties import PRESETS, ActivationPenalty


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        name: What tables call it.
        regularizer: The preset added to the loss, or None.
        initialization: The preset minimised before training, or None.
        coefficients: The regularizer's coefficients to tune over; a single one is not tuned.
        initialization_steps: Number of initialization steps.
    """

    name: str
    regularizer: str | None = None
    initialization: str | None = None
    coefficients: tuple[float, ...] = ()
    initialization_steps: int = 100

    @property
    def coefficient(self) -> float | None:
        """The one coefficient, None without a regularizer."""
        return self.coefficients[0] if self.coefficients else None

    def candidates(self) -> list[Method]:
        """Return one method for each coefficient to try."""
        return [replace(self, coefficients=(c,)) for c in self.coefficients] or [self]


METHODS = {"none": Method("none")}
for _name, _preset in PRESETS.items():
    _default = (_preset.coefficient,)
    METHODS[_name] = Method(_name, regularizer=_name, coefficients=_default)
    if isinstance(_preset.penalty, ActivationPenalty) or _preset.penalty.windows:
        continue  # nothing can be minimised before there are images
    for _method in (
        Method(f"{_name}-init", initialization=_name),
        Method(f"{_name}-both", regularizer=_name, initialization=_name, coefficients=_default),
    ):
        METHODS[_method.name] = _method


def parse_method(text: str) -> Method:
    """Read ``NAME``, ``NAME@COEFFICIENT``, or ``NAME@C1,C2,…`` to tune over several coefficients.

    Raises:
        ConvsimError: For an unknown name, or a coefficient that is no finite number ≥ 0 or does not
            apply.

    Example:
        >>> parse_method("recommended@0.1,0.3").coefficients
        (0.1, 0.3)
    """
    name, _, numbers = text.partition("@")
    if name not in METHODS:
        raise ConvsimError(f"Unknown method {name!r}; the methods are {', '.join(METHODS)}.")
    method = METHODS[name]
    if not numbers:
        return method
    if method.regularizer is None:
        raise ConvsimError(f"Method {name!r} takes no coefficient; got {text!r}.")
    try:
        coefficients = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        coefficients = (math.nan,)
    if not all(math.isfinite(c) and c >= 0 for c in coefficients):
        raise ConvsimError(
            f"Coefficients must be finite numbers ≥ 0, separated by commas, as in {name}@0.1,0.3; "
            f"got {text!r}."
        )
    return replace(method, coefficients=coefficients)
