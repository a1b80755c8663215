"""What a comparison compares: a penalty as regularizer, as initialization, as both, or none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from convsim.errors import ConvsimError, did_you_mean
from convsim.penalties import PRESETS, ActivationPenalty

Coefficient = float | Literal["auto"]


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        name: What tables call it.
        regularizer: The preset added to the loss, or None.
        initialization: The preset minimised before training, or None.
        coefficients: The regularizer's coefficients to tune over; a single one is not tuned.
        initialization_steps: Number of initialization steps.
        falls: Over what share of all steps the coefficient falls to 0, in a line; None to keep it.
    """

    name: str
    regularizer: str | None = None
    initialization: str | None = None
    coefficients: tuple[Coefficient, ...] = ()
    initialization_steps: int = 100
    falls: float | None = None

    @property
    def coefficient(self) -> Coefficient | None:
        """The one coefficient, None without a regularizer."""
        return self.coefficients[0] if self.coefficients else None

    def candidates(self) -> list[Method]:
        """Return one method for each coefficient to try."""
        return [replace(self, coefficients=(c,)) for c in self.coefficients] or [self]


METHODS = {"none": Method("none")}
for _name, _preset in PRESETS.items():
    _default = (_preset.coefficient,)
    METHODS[_name] = Method(_name, regularizer=_name, coefficients=_default)
    _minimised = _preset.initialization or _preset.penalty
    if isinstance(_minimised, ActivationPenalty):
        continue  # there are no images yet
    for _method in (
        Method(f"{_name}-init", initialization=_name),
        Method(f"{_name}-both", regularizer=_name, initialization=_name, coefficients=_default),
    ):
        METHODS[_method.name] = _method


def parse_method(text: str) -> Method:
    """Read ``NAME``, ``NAME@COEFFICIENT``, or ``NAME@C1,C2,…`` to tune over several coefficients.

    A coefficient is a number or ``auto``, as in `convsim.Regularizer`. ``:SHARE`` at the end lets
    it fall to 0 over that share of the training steps, and is part of the method's name.

    Raises:
        ConvsimError: For an unknown name, a coefficient that is no finite number ≥ 0 or does not
            apply, or a share that is not above 0 and at most 1.

    Example:
        >>> parse_method("recommended@0.1,0.3").coefficients
        (0.1, 0.3)
        >>> parse_method("recommended@auto").name
        'recommended@auto'
        >>> parse_method("recommended@1,3:0.5").name
        'recommended:0.5'
    """
    whole, colon, share = text.partition(":")
    name, _, numbers = whole.partition("@")
    if name not in METHODS:
        raise ConvsimError(
            f"Unknown method {name!r}.{did_you_mean(name, METHODS)} A method is none, a preset "
            f"({', '.join(list(PRESETS)[:3])}, …), PRESET-init or PRESET-both; the presets are "
            "listed in docs/reference/penalties.md."
        )
    method = METHODS[name]
    if (numbers or colon) and method.regularizer is None:
        raise ConvsimError(f"Method {name!r} takes no coefficient; got {text!r}.")
    if numbers:
        method = _with_coefficients(method, numbers, text)
    if colon:
        method = replace(method, falls=_share(share, text), name=f"{method.name}:{share}")
    return method


def _with_coefficients(method: Method, numbers: str, text: str) -> Method:
    try:
        coefficients: tuple[Coefficient, ...] = tuple(
            "auto" if number == "auto" else float(number) for number in numbers.split(",")
        )
    except ValueError:
        coefficients = (math.nan,)
    if not all(c == "auto" or (math.isfinite(c) and c >= 0) for c in coefficients):
        raise ConvsimError(
            'Coefficients must be finite numbers ≥ 0 or "auto", separated by commas, as in '
            f"{method.name}@0.1,0.3; got {text!r}."
        )
    automatic = coefficients == ("auto",)  # may be compared with the same penalty by numbers
    name = f"{method.name}@auto" if automatic else method.name
    return replace(method, coefficients=coefficients, name=name)


def _share(share: str, text: str) -> float:
    try:
        falls = float(share)
    except ValueError:
        falls = math.nan
    if not 0 < falls <= 1:
        raise ConvsimError(
            "The share of the steps over which a coefficient falls to 0 must be above 0 and at "
            f"most 1, as in recommended@3:0.5; got {text!r}."
        )
    return falls
