"""Figures of studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from convsim.lab.studies.study import Row
from convsim.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def change_figure(rows: Sequence[Row], name: Callable[[Row], str]) -> Figure:
    """Draw, by row, the change's 5 %, median and 95 % quantile, and how often it is a rise."""
    drawing = new_figure(12, 1.5 + 0.27 * len(rows))
    changes, rises = drawing.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows, strict=True):
        changes.plot([row["low"], row["high"]], [place, place], color="#1b9e77", linewidth=2)
        changes.plot(row["median"], place, "o", color="#1b9e77")
    changes.axvline(0, color="#999999", linewidth=1)
    changes.set_yticks(list(places), [name(row) for row in rows], fontsize=8)
    changes.set_xlabel("change of the feature maps' |cosine|: 5 %, median, 95 % of draws")
    rises.barh(list(places), [100 * row["rises"] for row in rows], color="#d95f02")
    rises.set_xlabel("draws in which it rises, %")
    for axes in (changes, rises):
        axes.spines[["top", "right"]].set_visible(False)
    return drawing
