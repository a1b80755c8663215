"""One method against each of the others, paired by seed, and its similarity layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from convsim.errors import ConvsimError, did_you_mean
from convsim.lab.records import Record, report_damaged_record
from convsim.lab.summary import Estimate, measured_images, reported
from convsim.lab.tables import markdown_table

_HEAD = ("accuracy, points", "seeds won", "similarity")
_ONE_CLASS = (
    "\nSimilarity was measured on the first test images of a set that is sorted by class, and so "
    "on one class or few: such values compare with each other alone.\n"
)


@report_damaged_record("the comparison")
def paired_tables(records: Sequence[Record], method: str) -> str:
    """Compare a method with the others of a comparison, over the seeds that both have.

    Args:
        records: Of the comparison; those of tuning runs play no part.
        method: Whose differences to the others are shown, less their results.

    Returns:
        Two tables in Markdown: differences with their 95 % interval, and similarity by layer of the
        first other method and of this one.

    Raises:
        ConvsimError: If no record is of such a method, none of another, or two methods share no
            seed or were measured on other images.
    """
    found: dict[str, dict[int, Record]] = {}
    for record in reported(records):
        configuration = record["configuration"]
        found.setdefault(configuration["method"]["name"], {})[configuration["seed"]] = record
    if method not in found or len(found) == 1:
        raise ConvsimError(
            f"There is no method {method!r} beside others on record.{did_you_mean(method, found)} "
            f"On record are {', '.join(found) or 'none'}."
        )
    own = found.pop(method)
    rows = [(name, *_differences(own, other)) for name, other in found.items()]
    control = next(iter(found.values()))
    layers = list(next(iter(own.values()))["result"]["similarity"])
    means = [
        [
            f"{fmean(r['result']['similarity'][layer] for r in runs.values()):.3f}"
            for layer in layers
        ]
        for runs in (control, own)
    ]
    one_class = any(measured_images(run) == "one class" for run in own.values())
    return "\n".join([
        markdown_table((f"{method} less", *_HEAD), rows),
        markdown_table(("layer", *layers), [("control", *means[0]), (method, *means[1])]),
    ]) + _ONE_CLASS * one_class  # fmt: skip


def _differences(own: dict[int, Record], other: dict[int, Record]) -> tuple[str, str, str]:
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        raise ConvsimError("Methods are paired by seed; two of these have no seed in common.")
    pairs = [(own[seed]["result"], other[seed]["result"]) for seed in seeds]
    gains = [100 * (a["test_accuracy"] - b["test_accuracy"]) for a, b in pairs]
    changes = [fmean(a["similarity"].values()) - fmean(b["similarity"].values()) for a, b in pairs]
    same = {measured_images(runs[seed]) for runs in (own, other) for seed in seeds}
    return (
        Estimate.of(gains).text(1),
        f"{sum(gain > 0 for gain in gains)} of {len(seeds)}",
        Estimate.of(changes).text(3) if len(same) == 1 else "other images",
    )
