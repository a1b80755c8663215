"""Draw which part of convsim imports which, from the imports themselves."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import grimp
import networkx as nx
from matplotlib.figure import Figure

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def layers() -> list[list[str]]:
    """Read the layers that `lint-imports` holds the imports to, from the top."""
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [row.replace(":", "|").replace(" ", "").split("|") for row in rows]


def parts() -> nx.DiGraph:
    """Return convsim's parts, its modules and packages at the top, and which imports which."""
    graph = grimp.build_graph("convsim")
    edges = nx.DiGraph()
    for module in graph.modules - {"convsim"}:
        importer = module.split(".")[1]
        for imported in graph.find_modules_directly_imported_by(module) - {"convsim"}:
            edges.add_edge(importer, imported.split(".")[1])
    edges.remove_edges_from(list(nx.selfloop_edges(edges)))
    return edges


def diagram() -> str:
    """Draw the parts in their layers, with the arrows that no others imply, as an SVG."""
    rows = layers()
    arrows = nx.transitive_reduction(parts())
    place = {
        part: (2.6 * (column - (len(row) - 1) / 2), -1.25 * number)
        for number, row in enumerate(rows)
        for column, part in enumerate(row)
    }
    figure = Figure(figsize=(10, 0.85 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    for part, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.45", "facecolor": "#e0f2f1", "edgecolor": "#00796b"}
        axes.text(x, y, part, ha="center", va="center", fontsize=10, bbox=box, zorder=2)
    for importer, imported in arrows.edges:
        if importer in place and imported in place:
            axes.annotate(
                "", place[imported], place[importer], zorder=1,
                arrowprops={"arrowstyle": "-|>", "color": "#78909c", "shrinkA": 13, "shrinkB": 13},
            )  # fmt: skip
    axes.set_xlim(-6.2, 6.2)
    axes.set_ylim(-1.25 * len(rows) + 0.5, 0.75)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    return drawn.getvalue()
