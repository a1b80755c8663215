"""A report as a table, for the terminal and for a notebook."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from convsim.errors import require
from convsim.report.layer_redundancy import INPUT_CLASSES
from convsim.report.model_redundancy import common_layers
from convsim.report.verdict import alike, verdict
from convsim.visible import visible

if TYPE_CHECKING:
    from rich.console import Group

    from convsim.report.layer_redundancy import LayerRedundancy
    from convsim.report.model_redundancy import ModelRedundancy

NOTE = (
    "rank: how many directions the maps use (effective rank); similarity: mean |cosine| of two "
    "maps of one image, 1 if all are equal; shape: the same less each map's mean (correlation); "
    "{pairs}; dead: maps that are zero on every image."
)
DETAILS = (
    "kernels: mean |cosine| of two filters; CS: mean Convolutional Similarity, crossed and unit; "
    "bound: the certificate's bound on |cosine|, which tells nothing from 1 on."
)
_HEAD = ("layer", "maps", "rank", "similarity", "shape", "{pairs}", "dead")
_SPARE = "spare: how many maps can go at 1 % of error, told by the others (their energy's loss)"
_PAIRS = {
    "reading": ("twins", "twins: pairs of which one can be folded into the other"),
    "convolution": ("alike", "alike: pairs at 0.95 or more, of either sign"),
}
_OF_KERNELS = ("kernels", "CS", "bound")


@dataclass(frozen=True)
class Grid:
    """A table before it is laid out: the first column to the left, numbers to the right.

    Attributes:
        title: Above it.
        head: The columns' names.
        rows: Cells, row by row.
        note: Below it.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str

    def rich(self) -> Group:
        """Lay it out for a terminal: names fold where it is narrow, numbers never."""
        table, box, text, console = (
            require(f"rich.{name}", "report") for name in ("table", "box", "text", "console")
        )
        made = table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for i, name in enumerate(self.head):
            made.add_column(
                name, justify="right" if i else "left", overflow="fold", no_wrap=bool(i)
            )
        for row in self.rows:
            made.add_row(*(text.Text(visible(cell)) for cell in row))
        title = text.Text(visible(self.title), style="bold")
        note = "\n".join(map(visible, self.note.splitlines()))
        group: Group = console.Group(title, made, text.Text(note))
        return group

    def html(self) -> str:
        """Write it as HTML, for a notebook."""

        def line(tag: str, cells: Sequence[str]) -> str:
            side = ("left", *("right",) * (len(cells) - 1))
            return "".join(
                f'<{tag} style="text-align:{to}">{escape(visible(cell))}</{tag}>'
                for cell, to in zip(cells, side, strict=True)
            )

        body = "".join(f"<tr>{line('td', row)}</tr>" for row in self.rows)
        return (
            f"<div><b>{escape(visible(self.title))}</b><table><thead><tr>{line('th', self.head)}"
            f"</tr></thead><tbody>{body}</tbody></table>"
            f"<p><small>{escape(self.note)}</small></p></div>"
        )


def report_grid(report: ModelRedundancy, *, verbose: bool = False) -> Grid:
    """Lay a report out, a row by layer, with what to do below it.

    Args:
        report: The report.
        verbose: Whether also to show what the kernels alone say.
    """
    name, pairs = _PAIRS.get(report.place, _PAIRS["convolution"])
    title = f"{report.model}, {report.images:,} images: similarity {_text(report.similarity)}"
    head: tuple[str, ...] = tuple(word.format(pairs=name) for word in _HEAD)
    rows = [_row(layer) for layer in report]
    notes = [verdict(report), report.origin, NOTE.format(pairs=pairs)]
    if report.place == "reading":
        head += ("spare",)
        rows = [
            (*row, "–" if layer.spare is None else str(layer.spare))
            for row, layer in zip(rows, report, strict=True)
        ]
        notes.append(f"{_SPARE}.")
    if verbose:
        head += _OF_KERNELS
        rows = [row + _of_kernels(layer) for row, layer in zip(rows, report, strict=True)]
        notes += [DETAILS, _ranks(report)]
    shares = [layer.kernels.energy if layer.kernels else None for layer in report]
    if any(shares):  # of the inputs' autocorrelation, by class
        head += INPUT_CLASSES
        rows = [
            row + tuple(_text(share[name] if share else math.nan) for name in INPUT_CLASSES)
            for row, share in zip(rows, shares, strict=True)
        ]
    if report.silent:
        names = visible(", ".join(report.silent))
        notes.append(f"All maps are zero in {names}: no similarity, left out of the mean.")
    return Grid(title, head, rows, "\n".join(notes))


def comparison_grid(reports: Mapping[str, ModelRedundancy]) -> Grid:
    """Lay named reports out, a row by layer that all have."""
    several = [*reports.values()]
    title = f"{several[-1].model}: similarity " + ", ".join(
        f"{_text(report.similarity)} {name}" for name, report in reports.items()
    )
    if len(several) == 2:
        title += f" ({_signed(several[1].similarity - several[0].similarity)})"
    head = (
        "layer", "maps", *(f"similarity\n{name}" for name in reports),
        *(f"rank\n{name}" for name in reports if len(several) == 2),
    )  # fmt: skip
    rows = [
        (
            layers[0].name or "(model)",
            " → ".join(dict.fromkeys(str(layer.filters) for layer in layers)),
            *(_text(layer.similarity) for layer in layers),
            *(f"{layer.effective_rank:.1f}" for layer in layers if len(several) == 2),
        )
        for layers in common_layers(several)
    ]
    return Grid(
        title,
        head,
        rows,
        "similarity: mean |cosine| of two maps; rank: how many directions the maps use.",
    )


def _row(layer: LayerRedundancy) -> tuple[str, ...]:
    return (
        layer.name or "(model)",
        str(layer.filters),
        f"{layer.effective_rank:.1f}",
        _text(layer.similarity),
        _text(layer.correlation),
        str(alike(layer)),
        str(layer.dead),
    )


def _of_kernels(layer: LayerRedundancy) -> tuple[str, ...]:
    kernels = layer.kernels
    if kernels is None:
        return ("–",) * 3
    return tuple(map(_text, (kernels.mean_cosine, kernels.mean_similarity, kernels.bound)))


def _ranks(report: ModelRedundancy) -> str:
    ranks = ", ".join(
        f"{name} {_text(value.layers)} across layers, {_text(value.pairs)} across pairs"
        for name, value in report.rank_correlations.items()
    )
    return f"Rank correlation with similarity: {ranks}."


def _text(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"
