"""Times of several variants, taken in turn, round by round, so that noise falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import quantiles
from typing import Any

import torch
from accelerator import milliseconds

Samples = dict[str, list[float]]
_SAMPLE = 20.0  # ms, about, of which the clock's own error is nothing
_MOST_CALLS = 20


def in_turn(
    runs: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    rounds: int,
    until: float,
) -> Samples:
    """Time every variant once a round, after one round of warm-up; milliseconds.

    Args:
        runs: The variants.
        device: Where they run.
        rounds: How many rounds.
        until: When to stop, on `time.monotonic`'s clock. A round that is cut off does not count,
            but if it is the first.
    """
    times = {name: _calls(milliseconds(run, device)) for name, run in runs.items()}
    samples: Samples = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if time.monotonic() > until:
                whole = min(map(len, samples.values())) or 1
                return {name: own[:whole] for name, own in samples.items()}
            samples[name].append(milliseconds(run, device, times[name]))
    return samples


def _calls(ms: float) -> int:
    """Choose how many calls make one sample."""
    return max(1, min(_MOST_CALLS, round(_SAMPLE / max(ms, 1e-3))))


def quartiles(values: list[float]) -> dict[str, float]:
    """Return median, lower and upper quartile, and how many there are."""
    low, median, high = quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
    return {"median": median, "low": low, "high": high, "samples": len(values)}


def beside(samples: Samples, base: str) -> dict[str, dict[str, Any]]:
    """Describe times in milliseconds, and their ratios to one variant's in the same round."""
    return {
        name: {
            "ms": quartiles(values),
            "ratio": quartiles([own / of for own, of in zip(values, samples[base], strict=False)]),
        }
        for name, values in samples.items()
        if values
    }
