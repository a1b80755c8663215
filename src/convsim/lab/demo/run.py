"""The three things that convsim does, each on real images and in one go."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from convsim.lab.comparison import compare
from convsim.lab.datasets import ImageData, load_dataset
from convsim.lab.demo.smallest_filters import without_smallest_filters
from convsim.lab.loading import prepared
from convsim.lab.measuring import measure_on
from convsim.lab.methods import parse_method
from convsim.lab.preprocessing import Standardised
from convsim.lab.records import Record
from convsim.lab.runs import Recipe, Run
from convsim.lab.shrinking import accuracy_on, shrink_on
from convsim.lab.training import train
from convsim.report import RedundancyReport

DATA = "photographs"
LONG = Recipe(epochs=10, batch_size=64, lr=0.1)
"""How the network to look at and to shrink is trained: until it improves no more."""
SHORT = Recipe(epochs=4, batch_size=64, lr=0.05)
"""How networks are trained with and without the penalty."""
METHODS = ("none", "recommended@3")
SEEDS = 5
SHARES = (0.5, 0.25)
"""Of the parameters, to keep."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Smaller:
    """A network made smaller, in two ways, to the same number of channels of each layer.

    Attributes:
        parameters: What is left, as a share.
        accuracy: Of `convsim.shrink`'s result on test images, in [0, 1].
        smallest: Of the one without the filters of smallest norm, with its BatchNorm estimated
            again.
    """

    parameters: float
    accuracy: float
    smallest: float


@dataclass(frozen=True)
class Demo:
    """What came out.

    Attributes:
        data: The images.
        report: How much the trained network's maps repeat each other.
        parameters: The trained network's.
        accuracy: Its accuracy on test images.
        smaller: It, shrunk.
        records: The short trainings, without and with the penalty.
    """

    data: ImageData
    report: RedundancyReport
    parameters: int
    accuracy: float
    smaller: tuple[Smaller, ...]
    records: Sequence[Record]


def run_demo(folder: Path, progress: Progress, *, seeds: int = SEEDS) -> Demo:
    """Train, look at, shrink and compare; training that is in the folder is not repeated.

    Args:
        folder: Where checkpoints and records go.
        progress: Called as things get done.
        seeds: How many networks are trained with and without the penalty.
    """
    data = load_dataset(DATA)
    run = Run(parse_method("none"), 0, LONG, data)
    model, record = train(
        run, folder / "network", lambda done, total, _: progress("train a network", done, total)
    )
    progress("look at it", 0, 1)
    report = measure_on(model, data.to_measure(256))
    progress("look at it", 1, 1)
    smaller: list[Smaller] = []
    for share in SHARES:
        progress("shrink it", len(smaller), len(SHARES))
        smaller.append(_shrunk(model, data, share))
    progress("shrink it", len(SHARES), len(SHARES))
    jobs = min(4, os.cpu_count() or 1)
    records = compare(
        data, SHORT, [parse_method(name) for name in METHODS], range(seeds), folder / "training",
        jobs=jobs,
        report=lambda run, done, total: progress("train with and without", done, total),
    )  # fmt: skip
    return Demo(
        data, report, sum(p.numel() for p in model.parameters()),
        record["result"]["test_accuracy"], tuple(smaller), records,
    )  # fmt: skip


def _shrunk(model: nn.Module, data: ImageData, share: float) -> Smaller:
    shrunk = shrink_on(model, data, images=1000, target="parameters", share=share)
    counts = {layer.name: layer.channels.after for layer in shrunk.report.layers}
    chosen = data.subset(train=1000, seed=0).train_images
    images = torch.cat([*prepared(chosen, Standardised.of(data.train_images), 100)])
    rival = without_smallest_filters(model, counts, images)
    parameters = shrunk.report.parameters
    return Smaller(
        parameters.after / parameters.before,
        accuracy_on(shrunk.model, data),
        accuracy_on(rival, data),
    )
