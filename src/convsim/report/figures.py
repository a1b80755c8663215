"""A report as matplotlib figures, made without pyplot: no window, no global state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from convsim.errors import require
from convsim.report.heat_map import similarity_order
from convsim.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from convsim.report.layer_redundancy import LayerRedundancy
    from convsim.report.model_redundancy import ModelRedundancy

_FEW = 25
"""Most layers whose names fit under an axis."""


def report_figure(report: ModelRedundancy, before: ModelRedundancy | None = None) -> Figure:
    """Draw similarity and correlation by layer, of one report or of two."""
    drawing: Figure = require("matplotlib.figure", "report").Figure(
        figsize=(12, 4), layout="constrained"
    )
    drawing.suptitle(f"{visible(report.model)}, {report.images:,} images", parse_math=False)
    names = [layer.name for layer in report.layers]
    place = {name: i for i, name in enumerate(names)}
    for axes, quantity in zip(drawing.subplots(1, 2), ("similarity", "correlation"), strict=True):
        for which, label, color in ((before, "before", "#999999"), (report, "after", "#1b9e77")):
            if which is None:
                continue
            shown = [layer for layer in which.layers if layer.name in place]
            axes.plot(
                [place[layer.name] for layer in shown],
                [getattr(layer, quantity) for layer in shown],
                "o-", markersize=4, color=color, label=label,
            )  # fmt: skip
        _label(axes, f"Feature-map {quantity} (mean |cosine| of pairs)", "layer, from the input")
        axes.set_ylim(bottom=0)
        if len(names) <= _FEW:
            slanted = {"rotation": 60, "ha": "right", "fontsize": 8, "parse_math": False}
            axes.set_xticks(range(len(names)), list(map(visible, names)), **slanted)
        if before is not None:
            axes.legend(frameon=False)
    return drawing


def layer_figure(layer: LayerRedundancy) -> Figure:
    """Draw a layer's pair matrix, ordered by similarity, and the distribution of its pairs."""
    drawing: Figure = require("matplotlib.figure", "report").Figure(
        figsize=(9, 4), layout="constrained"
    )
    value = "undefined" if math.isnan(layer.similarity) else f"{layer.similarity:.3f}"
    title = f"{visible(layer.name)}: {layer.filters} maps, similarity {value}"
    drawing.suptitle(title, parse_math=False)
    heat, bars = drawing.subplots(1, 2)
    order = torch.tensor(similarity_order(layer.matrix))
    picture = heat.imshow(layer.matrix[order][:, order].numpy(), vmin=0, vmax=1, cmap="viridis")
    drawing.colorbar(picture, ax=heat, shrink=0.8)
    heat.set_title("|cosine| of every two maps, ordered by similarity", fontsize=11)
    width = 1 / len(layer.histogram)
    bars.bar([i * width for i in range(len(layer.histogram))], layer.histogram, width, align="edge")
    _label(bars, "Distribution over pairs", "mean |cosine|")
    return drawing


def _label(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
