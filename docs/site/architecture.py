"""Draw which part of convsim imports which, from the imports themselves."""

from __future__ import annotations

import io
import re
import tomllib
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import grimp
import networkx as nx
import numpy as np
from matplotlib.figure import Figure

Places = dict[str, tuple[float, float]]
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def layers() -> list[list[str]]:
    """Read the layers that `lint-imports` holds the imports to, from the top."""
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [re.split(r"\W+", row.strip("()")) for row in rows]


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


def swaps(row: list[str]) -> Iterable[list[str]]:
    """Yield a row with two of its parts exchanged, any two; a long row has too many orders."""
    for i, j in combinations(range(len(row)), 2):
        order = row.copy()
        order[i], order[j] = order[j], order[i]
        yield order


def arrange(rows: list[list[str]], arrows: Iterable[tuple[str, str]]) -> Places:
    """Order each row so that arrows are short and pass beside the parts they are not about."""
    arrows = list(arrows)

    def places(row: Iterable[str], shift: float, number: int) -> Places:
        row = tuple(row)
        middle = (len(row) - 1) / 2
        return {p: (column - middle + shift, -float(number)) for column, p in enumerate(row)}

    def cost(place: Places) -> float:
        points = np.array(list(place.values()))
        start, end = (np.array([place[arrow[i]] for arrow in arrows])[:, None] for i in (0, 1))
        along = end - start
        length = (along**2).sum(-1)
        share = (((points - start) * along).sum(-1) / length).clip(0, 1)[..., None]
        gap = np.abs(start + share * along - points)
        hit = (gap[..., 0] < 0.42) & (gap[..., 1] < 0.3) & (share[..., 0] > 0) & (share[..., 0] < 1)
        return float(hit.sum() + 0.05 * np.sqrt(length).sum())

    found = []
    for seed in range(8):  # each leads downhill to a place of its own
        shifts = np.random.default_rng(seed).uniform(-1, 1, len(rows))
        start = [
            places(row, shift, n) for n, (row, shift) in enumerate(zip(rows, shifts, strict=True))
        ]
        place = {part: at for row in start for part, at in row.items()}
        for number, row in [*enumerate(rows)] * 4:
            now = sorted(row, key=lambda part: place[part][0])
            candidates = [
                place | places(order, shift, number)
                for order in [now, *swaps(now)]
                for shift in np.arange(-1.5, 1.75, 0.5)
            ]
            place = min(candidates, key=cost)
        found.append(place)
    return min(found, key=cost)


def diagram() -> str:
    """Draw the parts in their layers, with the arrows that no others imply, as an SVG."""
    graph = parts()
    there = [[part for part in row if part in graph] for row in layers()]
    rows = [row for row in there if row]
    arrows = nx.transitive_reduction(graph).edges
    place = {part: (2.3 * x, y) for part, (x, y) in arrange(rows, arrows).items()}
    figure = Figure(figsize=(8, 0.85 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    for part, at in place.items():
        box = {"boxstyle": "round,pad=0.45", "facecolor": "#e0f2f1", "edgecolor": "#00796b"}
        axes.text(*at, part, ha="center", va="center", fontsize=11, bbox=box, zorder=2)
    style = {"arrowstyle": "-|>", "color": "#546e7a", "shrinkA": 13, "shrinkB": 13}
    for importer, imported in arrows:
        axes.annotate("", place[imported], place[importer], zorder=1, arrowprops=style)
    horizontal = [x for x, _ in place.values()]
    axes.set_xlim(min(horizontal) - 1.2, max(horizontal) + 1.2)
    axes.set_ylim(0.5 - len(rows), 0.5)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
