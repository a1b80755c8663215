"""One method against each other one, paired by seed, and its similarity by layer."""

from __future__ import annotations

from collections.abc import Sequence

from convsim.errors import ConvsimError, did_you_mean
from convsim.lab.records import Record, report_damaged_record
from convsim.lab.summary import Summary, reported, summarize
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
        records: Of the comparison; those of tuning runs are ignored.
        method: The method whose results are shown, less those of each other method.

    Returns:
        Two tables in Markdown: differences with their 95 % interval, and similarity by layer of the
        first other method and of this one.

    Raises:
        ConvsimError: If no record is of such a method, none of another, or two methods share no
            seed or were measured on other images.
    """
    found: dict[str, list[Record]] = {}
    for record in reported(records):
        found.setdefault(record["configuration"]["method"]["name"], []).append(record)
    if method not in found or len(found) == 1:
        raise ConvsimError(
            f"There is no method {method!r} beside others on record.{did_you_mean(method, found)} "
            f"On record are {', '.join(found) or 'none'}."
        )
    own = found.pop(method)
    pairs = [_over_shared_seeds(other, own) for other in found.values()]
    layers = pairs[0][1].layers
    means = [[f"{one.layers[layer]:.3f}" for layer in layers] for one in pairs[0]]
    one_class = any(summary.one_class for _, summary in pairs)
    return "\n".join([
        markdown_table((f"{method} less", *_HEAD), [_row(*pair) for pair in pairs]),
        markdown_table(("layer", *layers), [("control", *means[0]), (method, *means[1])]),
    ]) + _ONE_CLASS * one_class  # fmt: skip


def _over_shared_seeds(other: list[Record], own: list[Record]) -> list[Summary]:
    seeds = set.intersection(
        *({run["configuration"]["seed"] for run in runs} for runs in (other, own))
    )
    if not seeds:
        raise ConvsimError("Methods are paired by seed; two of these have no seed in common.")
    return summarize([run for run in (*other, *own) if run["configuration"]["seed"] in seeds])


def _row(other: Summary, own: Summary) -> tuple[str, ...]:
    gains = own.accuracy_gain
    won = sum(gain > 0 for gain in gains.values)
    return other.method, gains.text(1, 100), f"{won} of {len(gains.values)}", own.change
