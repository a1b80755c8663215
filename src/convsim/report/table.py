"""A report as a table for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from convsim.errors import require
from convsim.report.layer_redundancy import INPUT_CLASSES
from convsim.report.model_redundancy import common_layers
from convsim.visible import visible

if TYPE_CHECKING:
    from rich.table import Table

    from convsim.report.layer_redundancy import LayerRedundancy
    from convsim.report.model_redundancy import ModelRedundancy

NOTE = (
    "similarity: mean |cosine| of two feature maps of one image; correlation: the same less each "
    "map's mean; rank: effective rank of the maps; {pairs}; "
    "kernels: mean |cosine| of two filters; CS: mean Convolutional Similarity, crossed and unit; "
    "bound: the certificate's bound on |cosine|, which tells nothing from 1 on."
)
_HEADER = (
    "layer", "maps", "similarity", "correlation", "rank", "dead", "{pairs}", "kernels", "CS",
    "bound",
)  # fmt: skip
_PAIRS = {
    "reading": (
        "twins",
        "twins: pairs of which one can be folded into the other, 90 % of it or more",
    ),
    "convolution": ("alike", "alike: pairs with similarity of 0.95 or more, of either sign"),
}


def report_table(report: ModelRedundancy) -> Table:
    """Lay a report out, a row by layer."""
    title = f"{report.model}, {report.images:,} images: similarity {_text(report.similarity)}"
    ranks = ", ".join(
        f"{name} {_text(value.layers)} across layers, {_text(value.pairs)} across pairs"
        for name, value in report.rank_correlations.items()
    )
    rows = [_row(layer) for layer in report.layers]
    name, note = _PAIRS.get(report.place, _PAIRS["convolution"])
    header: tuple[str, ...] = tuple(title.format(pairs=name) for title in _HEADER)
    shares = [layer.kernels.energy if layer.kernels else None for layer in report.layers]
    if any(shares):  # of the inputs' autocorrelation, by class
        header += INPUT_CLASSES
        rows = [
            row + tuple(_text(share[name] if share else math.nan) for name in INPUT_CLASSES)
            for row, share in zip(rows, shares, strict=True)
        ]
    caption = (
        f"{report.origin}\n{NOTE.format(pairs=note)}\nRank correlation with similarity: {ranks}."
    )
    if report.silent:
        names = visible(", ".join(report.silent))
        caption += f"\nAll maps are zero in {names}: no similarity, left out of the mean."
    return _table(title, header, rows, caption)


def comparison_table(before: ModelRedundancy, after: ModelRedundancy) -> Table:
    """Lay two reports of one model out, a row by layer that both have."""
    title = (
        f"{after.model}: similarity {_text(before.similarity)} → {_text(after.similarity)} "
        f"({_signed(after.similarity - before.similarity)})"
    )
    header = (
        "layer", "maps", "similarity", "", "change", "correlation", "", "rank", "", "dead", "",
    )  # fmt: skip
    rows = [
        (
            b.name,
            str(a.filters) if a.filters == b.filters else f"{b.filters} → {a.filters}",
            _text(b.similarity), _text(a.similarity), _signed(a.similarity - b.similarity),
            _text(b.correlation), _text(a.correlation),
            f"{b.effective_rank:.1f}", f"{a.effective_rank:.1f}", str(b.dead), str(a.dead),
        )
        for b, a in common_layers(before, after)
    ]  # fmt: skip
    return _table(title, header, rows, "Two columns: before and after.")


def _row(layer: LayerRedundancy) -> tuple[str, ...]:
    kernels = layer.kernels
    of_kernels = (math.nan,) * 3
    if kernels is not None:
        of_kernels = (kernels.mean_cosine, kernels.mean_similarity, kernels.bound)
    return (
        layer.name or "(model)",
        str(layer.filters),
        _text(layer.similarity),
        _text(layer.correlation),
        f"{layer.effective_rank:.1f}",
        str(layer.dead),
        str(len(layer.duplicates() if layer.pooled is None else layer.twins())),
        *map(_text, of_kernels),
    )


def _text(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _table(title: str, header: tuple[str, ...], rows: list[Any], caption: str) -> Table:
    rich_table, box, text = (require(f"rich.{name}", "report") for name in ("table", "box", "text"))
    table: Table = rich_table.Table(
        title=text.Text(visible(title)),
        caption=text.Text(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(text.Text(visible(cell)) for cell in row))
    return table
