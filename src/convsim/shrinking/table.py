"""The report of a shrinking as a table in the terminal."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from convsim.shrinking.changes import Before, NetworkChange
from convsim.visible import visible


def shrink_table(report: NetworkChange) -> Table:
    """Make a table with one row a layer and the whole network below."""
    table = Table(
        title=f"{visible(report.model)}, shrunk on {report.images} images",
        caption=(
            f"outputs differ by {_percent(report.output_error)} of their variance on the "
            "calibration images"
        ),
    )
    table.add_column("layer")
    for head in ("channels", "parameters", "multiplications", "error"):
        table.add_column(head, justify="right")
    table.add_column("note")
    for layer in report.layers:
        table.add_row(
            Text(visible(layer.name)),
            _change(layer.channels),
            _change(layer.parameters),
            _change(layer.macs),
            "" if math.isnan(layer.error) else _percent(layer.error),
            Text(visible(layer.reason)),
        )
    table.add_section()
    table.add_row("all", "", _change(report.parameters), _change(report.macs), "", "")
    return table


def _change(count: Before) -> str:
    if count.before == count.after:
        return f"{count.before:,}"
    return f"{count.before:,} → {count.after:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
