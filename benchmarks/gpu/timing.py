"""Times of several variants, taken in turn, round by round, so that noise falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import quantiles
from typing import Any

import torch
from accelerator import milliseconds

Samples = dict[str, list[float]]


def in_turn(
    runs: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    rounds: int,
    times: int,
    until: float,
) -> Samples:
    """Time every variant once a round, after one round of warm-up; milliseconds.

    Args:
        runs: The variants.
        device: Where they run.
        rounds: How many rounds.
        times: How many calls make one sample.
        until: When to stop, on `time.monotonic`'s clock; whole rounds only.
    """
    samples: Samples = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        if time.monotonic() > until and round_ > 1:
            break
        for name, run in runs.items():
            took = milliseconds(run, device, times)
            if round_:
                samples[name].append(took)
    return samples


def quartiles(values: list[float]) -> dict[str, float]:
    """Return median, lower and upper quartile, and how many there are."""
    low, median, high = quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
    return {"median": median, "low": low, "high": high, "samples": len(values)}


def beside(samples: Samples, base: str) -> dict[str, dict[str, Any]]:
    """Describe times in milliseconds, and their ratios to one variant's in the same round."""
    return {
        name: {
            "ms": quartiles(values),
            "ratio": quartiles([own / of for own, of in zip(values, samples[base], strict=True)]),
        }
        for name, values in samples.items()
        if values
    }
