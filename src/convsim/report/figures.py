"""A report as matplotlib figures, made without pyplot: no window, no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from convsim.errors import require
from convsim.report.heat_map import similarity_order
from convsim.report.model_redundancy import common_layers
from convsim.report.verdict import unrelated
from convsim.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from convsim.report.layer_redundancy import LayerRedundancy
    from convsim.report.model_redundancy import ModelRedundancy

_FEW = 25
"""Most layers, or maps, whose names fit under an axis."""
COLORS = ("#888888", "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#1f78b4")


@cache
def _picture(base: Any) -> Any:
    """Derive from matplotlib's figure, which is an extra and so known only here."""

    class Picture(base):  # type: ignore[misc]
        """A figure that a notebook shows, whether or not pyplot was ever imported."""

        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            self.savefig(drawn, format="png", dpi=100)
            return drawn.getvalue()

    return Picture


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of that many inches; as a notebook's last value it is shown.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    kind = _picture(require("matplotlib.figure", "report").Figure)
    made: Figure = kind(figsize=(width, height), layout="constrained")
    return made


def report_figure(reports: Mapping[str, ModelRedundancy]) -> Figure:
    """Draw similarity and correlation by layer, of one report or of several by name.

    Of several, the layers that all have.
    """
    several = [*reports.values()]
    drawing = new_figure(12, 4)
    last = several[-1]
    said = f"{last.images:,} images" + f" ({visible(last.data)})" * bool(last.data)
    drawing.suptitle(f"{visible(several[-1].model)}, {said}", parse_math=False)
    common = common_layers(several)
    names = [layers[-1].name or "(model)" for layers in common]
    words = ("similarity", "mean |cosine| of two maps"), ("correlation", "the same, less the means")
    for axes, (quantity, meaning) in zip(drawing.subplots(1, 2), words, strict=True):
        for number, name in enumerate(reports):
            axes.plot(
                range(len(common)),
                [getattr(layers[number], quantity) for layers in common],
                "o-", markersize=4, label=visible(name) or "measured",
                color=COLORS[number % len(COLORS)] if len(several) > 1 else COLORS[1],
            )  # fmt: skip
        axes.plot(
            range(len(common)), [unrelated(max(1, layers[-1].pixels)) for layers in common],
            ":", color="#aaaaaa", label="unrelated maps",
        )  # fmt: skip
        label_axes(axes, f"Feature-map {quantity} ({meaning})", "layer, from the input")
        axes.set_ylim(bottom=0)
        if len(names) <= _FEW:
            slanted = {"rotation": 60, "ha": "right", "fontsize": 8, "parse_math": False}
            axes.set_xticks(range(len(names)), list(map(visible, names)), **slanted)
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)
    return drawing


def layer_figure(layer: LayerRedundancy) -> Figure:
    """Draw a layer's pair matrix, ordered by similarity, and the distribution of its pairs."""
    drawing = new_figure(9, 4)
    value = "undefined" if math.isnan(layer.similarity) else f"{layer.similarity:.3f}"
    title = f"{visible(layer.name)}: {layer.filters} maps, similarity {value}"
    drawing.suptitle(title, parse_math=False)
    heat, bars = drawing.subplots(1, 2)
    order = similarity_order(layer.matrix)
    ordered = layer.matrix[torch.tensor(order)][:, torch.tensor(order)]
    picture = heat.imshow(ordered.numpy(), vmin=0, vmax=1, cmap="viridis")
    drawing.colorbar(picture, ax=heat, shrink=0.8, label="|cosine|")
    heat.set_title("every two maps, neighbours alike", fontsize=11)
    shown = range(len(order)) if len(order) <= _FEW else ()  # a filter's number, not its place
    heat.set_xticks(shown, [str(order[i]) for i in shown], fontsize=7, rotation=90)
    heat.set_yticks(shown, [str(order[i]) for i in shown], fontsize=7)
    heat.set_xlabel("filter")
    heat.set_ylabel("filter")
    width = 1 / len(layer.histogram)
    bars.bar([i * width for i in range(len(layer.histogram))], layer.histogram, width, align="edge")
    label_axes(bars, "Distribution over pairs", "mean |cosine|")
    bars.set_ylabel("pairs")
    return drawing


def label_axes(axes: Axes, title: str, x: str) -> None:
    """Give axes a title and a name below, and keep the frame and the grid faint."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
