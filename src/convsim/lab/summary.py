"""What a comparison's records say: means over seeds, and differences paired by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

from scipy.special import stdtrit

from convsim.errors import ConvsimError
from convsim.lab.datasets import DATASETS
from convsim.lab.methods import Coefficient
from convsim.lab.records import Record, report_damaged_record


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % confidence interval (Student's t).

    Attributes:
        mean: The mean.
        half_width: Half of the interval's width; infinite for a single seed.
        values: One per seed.
    """

    mean: float
    half_width: float
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """Estimate the mean of some values.

        Example:
            >>> Estimate.of([1.0, 2.0, 3.0])
            Estimate(mean=2.0, half_width=2.48..., values=(1.0, 2.0, 3.0))
        """
        n = len(values)
        half = stdtrit(n - 1, 0.975) * stdev(values) / math.sqrt(n) if n > 1 else math.inf
        return Estimate(fmean(values), float(half), tuple(values))

    def text(self, digits: int, unit: float = 1, *, sign: str = "+") -> str:
        """Write mean ± half width, times `unit`; with "" as sign, without a plus.

        Example:
            >>> Estimate.of([0.01, 0.02]).text(1, 100)
            '+1.5 ± 6.4'
        """
        mean = f"{unit * self.mean:{sign}.{digits}f}"
        known = math.isfinite(self.half_width)
        return f"{mean} ± {unit * self.half_width:.{digits}f}" if known else mean


Images = Literal["by class", "in order", "one class"]
"""Test images drawn class by class; the first ones; or the first ones of a set sorted by class."""


def measured_images(record: Record) -> Images:
    """Tell which test images a record's feature-map similarity was measured on.

    In schema 1 these were the first ones. Folders and archives of images are sorted by class, so
    there they were of one class, or of the first few.
    """
    if record["schema"] > 1:
        return "by class"
    name = record["configuration"]["data"]["name"]
    mixed = re.fullmatch(rf"({'|'.join(DATASETS)})(-(train|test|seed)\d+)*", name)
    return "in order" if mixed else "one class"


@dataclass(frozen=True)
class Summary:
    """One method's line in a comparison; differences are to the first method, paired by seed.

    Attributes:
        method: The method's name.
        coefficient: Its regularizer's coefficient, None without one.
        lr: Its learning rate.
        accuracy: Test accuracy, in [0, 1].
        accuracy_gain: Its difference to the control's.
        epochs_to_target: Epochs until the held-out accuracy first reaches the control's mean final
            one, median over seeds; infinite where too few seeds reach it for a median.
        reached: How many seeds reached it.
        similarity: Feature-map similarity on test images, mean over layers.
        similarity_gain: Its difference to the control's; None if that was measured on others.
        one_class: Whether similarity was measured on images of one class, or of a few.
        seconds: Time of training with its initialization, median over seeds.
        curve: Mean held-out accuracy after each epoch.
        layers: Feature-map similarity by layer, mean over seeds.
    """

    method: str
    coefficient: Coefficient | None
    lr: float
    accuracy: Estimate
    accuracy_gain: Estimate
    epochs_to_target: float
    reached: int
    similarity: Estimate
    similarity_gain: Estimate | None
    one_class: bool
    seconds: float
    curve: tuple[float, ...]
    layers: dict[str, float]

    @property
    def change(self) -> str:
        """Write `similarity_gain` as tables show it."""
        gain = self.similarity_gain
        return "other images" if gain is None else gain.text(3)


def reported(records: Sequence[Record]) -> list[Record]:
    """Take the records of runs that looked at test images; tuning does not."""
    return [record for record in records if record["configuration"]["looks_at_test"]]


@report_damaged_record("the comparison")
def summarize(records: Sequence[Record]) -> list[Summary]:
    """Summarize the records of a comparison, the control's first.

    Raises:
        ConvsimError: If the methods do not share their seeds, or a record is damaged.
    """
    by_method: dict[str, dict[int, Record]] = {}
    for record in records:
        configuration = record["configuration"]
        name = configuration["method"]["name"]
        by_method.setdefault(name, {})[configuration["seed"]] = record["result"] | {
            "coefficient": next(iter(configuration["method"]["coefficients"]), None),
            "lr": configuration["recipe"]["lr"],
            "measured_on": measured_images(record),
        }
    seeds = sorted(next(iter(by_method.values())))
    if any(sorted(results) != seeds for results in by_method.values()):
        found = {name: sorted(results) for name, results in by_method.items()}
        raise ConvsimError(f"Methods can only be paired over the same seeds; got {found}.")
    table = {name: [results[seed] for seed in seeds] for name, results in by_method.items()}
    control = next(iter(table.values()))
    target = fmean(result["validation_accuracy"][-1] for result in control)
    return [_summary(name, results, control, target) for name, results in table.items()]


def _summary(
    name: str, results: Sequence[Record], control: Sequence[Record], target: float
) -> Summary:
    def of(value: Callable[[Record], float]) -> tuple[Estimate, Estimate]:
        values, base = [value(r) for r in results], [value(r) for r in control]
        gains = [a - b for a, b in zip(values, base, strict=True)]
        return Estimate.of(values), Estimate.of(gains)

    def epochs(result: Record) -> float:
        curve: list[float] = result["validation_accuracy"]
        return next((i for i, score in enumerate(curve, 1) if score >= target), math.inf)

    accuracy, accuracy_gain = of(lambda r: float(r["test_accuracy"]))
    similarity, similarity_gain = of(lambda r: fmean(r["similarity"].values()))
    measured_on = {r["measured_on"] for r in (*results, *control)}
    curves = zip(*(r["validation_accuracy"] for r in results), strict=True)
    return Summary(
        method=name,
        coefficient=results[0]["coefficient"],
        lr=results[0]["lr"],
        accuracy=accuracy,
        accuracy_gain=accuracy_gain,
        epochs_to_target=median(map(epochs, results)),
        reached=sum(max(r["validation_accuracy"]) >= target for r in results),
        similarity=similarity,
        similarity_gain=similarity_gain if len(measured_on) == 1 else None,
        one_class=any(r["measured_on"] == "one class" for r in results),
        seconds=median(r["seconds"] + r["initialization_seconds"] for r in results),
        curve=tuple(map(fmean, curves)),
        layers={
            layer: fmean(r["similarity"][layer] for r in results)
            for layer in results[0]["similarity"]
        },
    )
