"""JSON that can mean only one thing: no key twice in an object, every number finite.

And what a float32 is written as.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any


def loads(text: str | bytes) -> Any:
    """Parse JSON from elsewhere.

    Raises:
        ValueError: If it is no JSON in UTF-8, is nested too deeply, has a key twice in one object,
            or a number that is not finite.
    """
    if isinstance(text, bytes):
        text = text.decode()  # json.loads would guess another encoding
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def shortest(number: float) -> float:
    """Return the number of fewest digits that is the same float32, NaN and infinity as they are.

    Example:
        >>> shortest(0.10000000149011612)
        0.1
    """
    if not math.isfinite(number):
        return number
    # Nine digits tell every float32 from its neighbours.
    candidates = (float(f"{number:.{digits}g}") for digits in range(1, 10))
    return next(value for value in candidates if _as_float32(value) == _as_float32(number))


def _as_float32(number: float) -> bytes:
    return struct.pack("f", number)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key that comes twice in one object")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} where a finite number belongs")
    return number
