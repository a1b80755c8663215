"""The report of a shrinking as a table, for the terminal and for a notebook."""

from __future__ import annotations

import math

from convsim.report.table import Grid
from convsim.shrinking.changes import Before, NetworkChange
from convsim.visible import visible


def shrink_grid(report: NetworkChange) -> Grid:
    """Lay the report out: one row a layer, the whole network last, and why layers stayed below."""
    rows = [
        (
            layer.name or "(model)",
            _change(layer.channels),
            _change(layer.parameters),
            _change(layer.macs),
            "" if math.isnan(layer.error) else _percent(layer.error),
        )
        for layer in report.layers
    ]
    rows.append(("all", "", _change(report.parameters), _change(report.macs), ""))
    notes = [
        f"Outputs differ by {_percent(report.output_error)} of their variance on the calibration "
        "images, by more on others."
    ]
    notes += [
        f"The channels of {visible(one.name)} stay: {one.reason}."
        for one in report.layers
        if one.reason
    ]
    return Grid(
        f"{report.model}, shrunk on {report.images:,} images",
        ("layer", "channels", "parameters", "multiplications", "error"),
        rows,
        "\n".join(notes),
    )


def _change(count: Before) -> str:
    if count.before == count.after:
        return f"{count.before:,}"
    return f"{count.before:,} → {count.after:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
