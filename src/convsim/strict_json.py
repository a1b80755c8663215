"""JSON that can mean one thing only: no key twice in an object, every number finite."""

from __future__ import annotations

import json
import math
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
