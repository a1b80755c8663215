"""Time variants in turn, so that all see the same moments of a noisy machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Samples = dict[str, list[float]]


def times(runs: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> Samples:
    """Time every variant once a round, after one round of warm-up; milliseconds."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    samples: Samples = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            wait()
            started = time.perf_counter()
            run()
            wait()
            if round_:
                samples[name].append(1e3 * (time.perf_counter() - started))
    return samples
