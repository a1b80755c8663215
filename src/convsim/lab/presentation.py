"""A comparison as a table, a figure, and one self-contained HTML page."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convsim.lab.methods import Coefficient
from convsim.lab.page import page as page_of
from convsim.lab.records import Record
from convsim.lab.summary import Summary
from convsim.lab.tables import markdown_table
from convsim.report.figures import label_axes, new_figure
from convsim.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADER = (
    "method", "coef.", "lr", "accuracy, %", "gain", "epochs", "similarity", "change", "time, s",
)  # fmt: skip
SHORT_HEADER = ("method", "accuracy, %", "gain", "epochs", "similarity", "time, s")
"""Of the terminal, 80 columns wide: without what is said elsewhere or follows from the rest."""
SHORT_NOTE = (
    "±: half of the 95 % interval over seeds. gain: accuracy on test images, less the first row's, "
    "seed by seed, in points. epochs: until the accuracy that the first row ends with is reached "
    "(median over seeds; '> n': not in n). similarity: mean |cosine| of two feature maps."
)
NOTE = (
    "Mean over seeds ± half of its 95 % confidence interval. Accuracy: on test images; gain: its "
    "difference to the first row, in points, paired by seed. Epochs: until the first row's mean "
    "final accuracy on held-out training images is reached, median over seeds, and by how many "
    "seeds where not by all. Similarity: mean |cosine| of feature-map pairs on test images, over "
    "layers; change: its difference to the first row, paired. Time: of training, median."
)
ONE_CLASS = (
    " †: measured on the first test images of a set that is sorted by class, and so on one class "
    "or few. Such values compare with each other, not with values on all classes."
)


def note(summaries: Sequence[Summary]) -> str:
    """Say what the table's columns are, and what is to be known of these values."""
    return NOTE + ONE_CLASS * any(summary.one_class for summary in summaries)


def rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return a comparison's cells, row by row under `HEADER`."""

    def row(summary: Summary) -> tuple[str, ...]:
        control = summary is summaries[0]
        return (
            summary.method,
            _coefficient(summary.coefficient),
            f"{summary.lr:g}",
            summary.accuracy.text(1, 100, sign=""),
            "" if control else summary.accuracy_gain.text(1, 100),
            _epochs(summary),
            f"{summary.similarity.mean:.3f}{' †' * summary.one_class}",
            "" if control else summary.change,
            f"{summary.seconds:.1f}",
        )

    return [row(summary) for summary in summaries]


def short_rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return a comparison's cells under `SHORT_HEADER`."""
    several = len({summary.lr for summary in summaries}) > 1

    def row(full: tuple[str, ...]) -> tuple[str, ...]:
        method, coefficient, lr, accuracy, gain, epochs, similarity, _, seconds = full
        name = f"{method}@{coefficient}" if coefficient else method
        return (f"{name}, lr {lr}" * several or name, accuracy, gain, epochs, similarity, seconds)

    return [row(full) for full in rows(summaries)]


def comparison_table(summaries: Sequence[Summary]) -> str:
    """Lay a comparison out as a table in Markdown."""
    return markdown_table(HEADER, rows(summaries))


def _epochs(summary: Summary) -> str:
    """Show the median over seeds, censored where too few seeds reach the target."""
    seeds, reached = len(summary.accuracy.values), summary.reached
    middle = summary.epochs_to_target
    text = f"{middle:g}" if math.isfinite(middle) else f"> {len(summary.curve)}"
    return text if reached == seeds else f"{text} ({reached} of {seeds})"


def _coefficient(value: Coefficient | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def figure(summaries: Sequence[Summary], title: str) -> Figure:
    """Draw learning curves, test accuracy by seed, and feature-map similarity by layer."""
    drawing = new_figure(12, max(3.8, 1 + 0.25 * len(summaries)))
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
            100 * summary.accuracy.mean, position,
            xerr=100 * half if math.isfinite(half) else None,
            fmt="|", markersize=12, capsize=4, color=color,
        )  # fmt: skip
        layers.plot(list(summary.layers.values()), "o-", color=color, markersize=4)
    label_axes(curves, "Held-out accuracy, %", "epoch")
    curves.xaxis.get_major_locator().set_params(integer=True)
    label_axes(accuracies, "Test accuracy by seed, %", "")
    accuracies.grid(visible=False, axis="y")
    accuracies.grid(axis="x", color="0.9")
    accuracies.invert_yaxis()
    accuracies.margins(y=0.1)
    cosine = "mean |cosine|" + ", one class" * any(s.one_class for s in summaries)
    label_axes(layers, f"Feature-map similarity ({cosine})", "convolution, from the input")
    depth = len(summaries[0].layers)
    layers.set_xticks(range(depth), [str(i + 1) for i in range(depth)])
    layers.set_ylim(bottom=0)
    return drawing


_COLORS = [
    "#555555", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#1f78b4",
    "#a6761d", "#b2df8a", "#fb9a99", "#cab2d6", "#17becf", "#000000", "#bc5090", "#003f5c",
    "#ffa600", "#8c564b", "#a6cee3", "#808000", "#5b8e7d",
]  # fmt: skip


def html_page(summaries: Sequence[Summary], title: str, details: str) -> str:
    """Put table and figure on one page that needs nothing else and asks no network for anything."""
    shows = "Learning curves, test accuracy by seed, and feature-map similarity by layer"
    return page_of(
        title, HEADER, rows(summaries),
        pictures=[(shows, figure_bytes(figure(summaries, "")))],
        above=note(summaries), below=details,
    )  # fmt: skip


def figure_bytes(drawing: Figure, dpi: int = 120) -> bytes:
    """Draw a figure as a PNG."""
    image = io.BytesIO()
    drawing.savefig(image, format="png", dpi=dpi)
    return image.getvalue()


def details(records: Sequence[Record], title: str) -> str:
    """Say what the runs of a comparison were trained on, how and where, from their records."""
    first = records[0]
    data, recipe = (first["configuration"][part] for part in ("data", "recipe"))
    where, effective = first["environment"], first["effective"]
    seeds = len({record["configuration"]["seed"] for record in records})
    lie = effective.get("memory_format", "contiguous")
    return (
        f"{title}: {data['train']:,} training images of which {recipe['validation']:.0%} are held "
        f"out, {data['test']:,} test images; {recipe['model']}, {effective['parameters']:,} "
        f"parameters, {recipe['epochs']} epochs, {seeds} seeds, precision "
        f"{effective['precision']}, {lie}. convsim {where['convsim']}, torch {where['torch']}, "
        f"{where['processor']}, {where['threads']} threads, commit {str(where['commit'])[:8]}, "
        f"{where['date']}."
    )


def write_comparison(
    summaries: Sequence[Summary], title: str, details: str, folder: Path, *, page: bool = True
) -> list[Path]:
    """Write comparison.png, .md and, where a page is wanted, .html; return their paths."""
    title, details = visible(title), visible(details)
    folder.mkdir(parents=True, exist_ok=True)
    picture, table = folder / "comparison.png", folder / "comparison.md"
    figure(summaries, title).savefig(picture, dpi=150)
    cells = comparison_table(summaries)
    table.write_text(f"# {title}\n\n{cells}\n{note(summaries)}\n\n{details}\n", encoding="utf-8")
    if not page:
        return [picture, table]
    html = folder / "comparison.html"
    html.write_text(html_page(summaries, title, details), encoding="utf-8")
    return [picture, table, html]
