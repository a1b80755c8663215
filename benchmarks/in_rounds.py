"""Time variants in turn, so that all see the same moments of a noisy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import Any

import torch

Samples = dict[str, list[float]]


def times(
    runs: dict[str, Callable[[], Any]],
    rounds: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Samples:
    """Time every variant once a round, after one round of warm-up; milliseconds."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    samples: Samples = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            wait()
            started = clock()
            run()
            wait()
            if round_:
                samples[name].append(1e3 * (clock() - started))
    return samples


def ratio(own: Sequence[float], plain: Sequence[float], digits: int = 3) -> str:
    """Put down own ÷ plain of each round: the median, with quartiles."""
    found = quantiles([a / b for a, b in zip(own, plain, strict=True)], n=4)
    low, middle, high = (f"{one:.{digits}f}" for one in found)
    return f"{middle} ({low}–{high})"
