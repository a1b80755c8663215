"""Which penalties are compared: the presets that there are, each distinct one once."""

from __future__ import annotations

from convsim import PRESETS
from convsim.penalties import ActivationPenalty

PREFERRED = (
    "recommended", "crossed", "cosine", "authors", "decov", "matched", "soft", "ocnn",
)  # fmt: skip
"""The order of worth; presets that are not named here come after these."""


def penalties() -> list[str]:
    """List the presets, the preferred ones first, without those that repeat an earlier one."""
    names = [name for name in PREFERRED if name in PRESETS]
    names += [name for name in PRESETS if name not in PREFERRED]
    found: dict[str, object] = {}
    for name in names:
        known = (PRESETS[name].penalty, PRESETS[name].coefficient)
        if known not in found.values():
            found[name] = known
    return list(found)


def coefficient(name: str) -> float:
    """Return what factors multiply: the preset's coefficient, or what it was in runs on record."""
    return {"recommended": 1.0}.get(name, PRESETS[name].coefficient)


def takes_kernels_alone(name: str) -> bool:
    """Tell whether a preset needs no forward pass, so that `backward_` serves it."""
    return not isinstance(PRESETS[name].penalty, ActivationPenalty)
