"""A comparison as a table, a figure, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from convsim.lab.methods import Coefficient
from convsim.lab.summary import Estimate, Summary
from convsim.report.html import content_policy, source_hash
from convsim.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADER = (
    "method",
    "coef.",
    "lr",
    "accuracy, %",
    "gain",
    "epochs",
    "similarity",
    "change",
    "time, s",
)
NOTE = (
    "Mean over seeds ± half of its 95 % confidence interval. Accuracy: on test images; gain: its "
    "difference to the first row, in points, paired by seed. Epochs: until the first row's mean "
    "final accuracy on held-out training images is reached (>: not by every seed). Similarity: "
    "mean |cosine| of feature-map pairs on test images, over layers; change: its difference to the "
    "first row, paired. Time: of training, median."
)


def rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return a comparison's cells, row by row under `HEADER`."""

    def row(summary: Summary) -> tuple[str, ...]:
        control = summary is summaries[0]
        more = "> " if summary.reached < len(summary.accuracy.values) else ""
        return (
            summary.method,
            _coefficient(summary.coefficient),
            f"{summary.lr:g}",
            f"{100 * summary.accuracy.mean:.1f}{_half(100 * summary.accuracy.half_width, 1)}",
            "" if control else _signed(summary.accuracy_gain, 1, 100),
            f"{more}{summary.epochs_to_target.mean:.1f}",
            f"{summary.similarity.mean:.3f}",
            "" if control else _signed(summary.similarity_gain, 3),
            f"{summary.seconds:.1f}",
        )

    return [row(summary) for summary in summaries]


def _coefficient(value: Coefficient | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def _signed(estimate: Estimate, digits: int, unit: float = 1) -> str:
    return f"{unit * estimate.mean:+.{digits}f}{_half(unit * estimate.half_width, digits)}"


def _half(width: float, digits: int) -> str:
    return f" ± {width:.{digits}f}" if math.isfinite(width) else ""


def terminal_table(summaries: Sequence[Summary], title: str) -> Table:
    """Lay a comparison out for the terminal."""
    table = Table(
        title=as_text(title),
        caption=NOTE,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in rows(summaries):
        table.add_row(*map(as_text, row))
    return table


def as_text(text: str) -> Text:
    """Keep a name from being read as rich's markup, or obeyed by the terminal."""
    return Text(visible(text))


def markdown_table(summaries: Sequence[Summary]) -> str:
    """Lay a comparison out as a Markdown table."""
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *rows(summaries)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def figure(summaries: Sequence[Summary], title: str) -> Figure:
    """Draw learning curves, test accuracy by seed, and feature-map similarity by layer."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    drawing = Figure(figsize=(12, max(3.8, 1 + 0.25 * len(summaries))), layout="constrained")
    drawing.suptitle(title, parse_math=False)
    curves, accuracies, layers = drawing.subplots(1, 3)
    accuracies.set_yticks(range(len(summaries)), [s.method for s in summaries])
    names = accuracies.get_yticklabels()
    for position, (summary, name) in enumerate(zip(summaries, names, strict=True)):
        color = _COLORS[position % len(_COLORS)]
        name.set_color(color)  # the names are the legend of all three
        epochs = range(1, len(summary.curve) + 1)
        curves.plot(epochs, [100 * a for a in summary.curve], color=color)
        values = [100 * a for a in summary.accuracy.values]
        accuracies.plot(values, [position] * len(values), "o", color=color, alpha=0.35)
        half = summary.accuracy.half_width
        accuracies.errorbar(
            100 * summary.accuracy.mean,
            position,
            xerr=100 * half if math.isfinite(half) else None,
            fmt="|",
            markersize=12,
            capsize=4,
            color=color,
        )
        layers.plot(list(summary.layers.values()), "o-", color=color, markersize=4)
    _label(curves, "Held-out accuracy, %", "epoch")
    curves.xaxis.get_major_locator().set_params(integer=True)
    _label(accuracies, "Test accuracy by seed, %", "")
    accuracies.grid(visible=False, axis="y")
    accuracies.grid(axis="x", color="0.9")
    accuracies.invert_yaxis()
    accuracies.margins(y=0.1)
    _label(layers, "Feature-map similarity (mean |cosine|)", "convolution, from the input")
    depth = len(summaries[0].layers)
    layers.set_xticks(range(depth), [str(i + 1) for i in range(depth)])
    layers.set_ylim(bottom=0)
    return drawing


_COLORS = [
    "#555555", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#1f78b4",
    "#a6761d", "#b2df8a", "#fb9a99", "#cab2d6", "#17becf", "#000000", "#bc5090", "#003f5c",
    "#ffa600", "#8c564b", "#a6cee3", "#808000", "#5b8e7d",
]  # fmt: skip


def _label(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem;
  padding: 0 1rem; color: #222; }
div { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .8rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
img { width: 100%; min-width: 40rem; }
p { color: #555; font-size: .9rem; }
"""


def html_page(summaries: Sequence[Summary], title: str, details: str) -> str:
    """Put table and figure on one page that needs nothing else and asks no network for anything."""
    image = io.BytesIO()
    figure(summaries, "").savefig(image, format="png", dpi=120)
    picture = base64.b64encode(image.getvalue()).decode()
    head, *body = [HEADER, *rows(summaries)]
    cells = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body
    )
    policy = content_policy("img-src data:", f"style-src '{source_hash(_STYLE)}'")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<div><table><thead><tr>{"".join(f"<th>{escape(name)}</th>" for name in head)}</tr></thead>
<tbody>{cells}</tbody></table></div>
<p>{escape(NOTE)}</p>
<div><img alt="Learning curves, test accuracy by seed, and feature-map similarity by layer"
 src="data:image/png;base64,{picture}"></div>
<p>{escape(details)}</p>
</body></html>
"""


def write_comparison(
    summaries: Sequence[Summary], title: str, details: str, folder: Path
) -> list[Path]:
    """Write comparison.png, .md and .html into a folder and return their paths."""
    title, details = visible(title), visible(details)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "comparison.png"
    figure(summaries, title).savefig(picture, dpi=150)
    table = folder / "comparison.md"
    table.write_text(
        f"# {title}\n\n{markdown_table(summaries)}\n{NOTE}\n\n{details}\n", encoding="utf-8"
    )
    page = folder / "comparison.html"
    page.write_text(html_page(summaries, title, details), encoding="utf-8")
    return [picture, table, page]
