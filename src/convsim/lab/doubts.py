"""When results mean little although they are numbers: a loss that blew up, or chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from statistics import fmean

from torch import nn

from convsim.errors import ConvsimWarning
from convsim.lab.datasets import ImageData
from convsim.lab.records import Record

_DIVERGED = 1.5
"""A training loss above this many times the loss of guessing has diverged; below, one epoch may end
by bad luck."""


@cache
def _say_once(text: str) -> None:
    warnings.warn(text, ConvsimWarning, stacklevel=3)


def warn_of_plain_relu(model: nn.Module) -> None:
    """Warn, once, of the one kind of network that penalties made worse on every seed on record."""
    kinds = {type(module).__name__.lower() for module in model.modules()}
    if "relu" in kinds and not any("norm" in kind for kind in kinds):
        _say_once(
            "A network with ReLU and no normalization lost accuracy to the penalty on every seed "
            "that is on record (experiments/12_networks). Take normalization layers, or ELU."
        )


def diverged(record: Record, data: ImageData) -> bool:
    """Tell whether a run ended far above the loss of guessing, log(number of classes)."""
    return bool(record["result"]["train_loss"][-1] > _DIVERGED * math.log(len(data.classes)))


def doubts(records: Sequence[Record], data: ImageData) -> list[str]:
    """Say what is wrong with the results of runs, method by method, the control first.

    Args:
        records: Of runs that looked at test images, in the order of their methods.
        data: What they were trained on.

    Returns:
        Sentences; none where all is well.
    """
    found = []
    # The accuracy of always naming the commonest class, and what that seldom exceeds by chance.
    luck = float(data.test_labels.bincount().max()) / len(data.test_labels)
    beyond_luck = luck + 3 * math.sqrt(luck * (1 - luck) / len(data.test_labels))
    by_method = groupby(records, lambda record: record["configuration"]["method"]["name"])
    for position, (name, group) in enumerate(by_method):
        runs = list(group)
        if lost := [run for run in runs if diverged(run, data)]:
            worst = max(run["result"]["train_loss"][-1] for run in lost)
            found.append(
                f"Method {name!r} diverged: the training loss ended at {worst:.3g} on {len(lost)} "
                f"of {len(runs)} seeds, where guessing has {math.log(len(data.classes)):.3g}. "
                "Lower the learning rate or the coefficient."
            )
        accuracy = fmean(run["result"]["test_accuracy"] for run in runs)
        if accuracy <= beyond_luck:
            control = len(runs) < len(records) and position == 0
            found.append(
                f"Method {name!r} is at chance: {accuracy:.1%} of the test images, where always "
                f"the commonest class has {luck:.1%}. "
                + "Differences to this control say nothing. " * control
                + "Train longer, or with another learning rate."
            )
    return found
