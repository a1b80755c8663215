"""The demo as a table, a figure of three panels, and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from convsim.lab.demo.run import LONG, SHARES, Demo
from convsim.lab.page import page
from convsim.lab.presentation import details, figure_bytes
from convsim.lab.records import Record, new_record
from convsim.lab.summary import Estimate, summarize
from convsim.lab.tables import markdown_table
from convsim.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "convsim on photographs"
HEAD = ("what", "with convsim", "without")
OURS, OTHERS = "#1b9e77", "#888888"


def record(demo: Demo) -> Record:
    """Put what came out on record, with where it came out."""
    without, with_ = summarize(demo.records)
    layers = [layer for layer in demo.report if layer.filters > 1]
    result = {
        "parameters": demo.parameters,
        "accuracy": demo.accuracy,
        "classes": len(demo.data.classes),
        "maps": sum(layer.filters for layer in layers),
        "rank": sum(layer.effective_rank for layer in layers),
        "smaller": [asdict(one) for one in demo.smaller],
        "epochs": demo.records[0]["configuration"]["recipe"]["epochs"],
        "without": without.accuracy.values,
        "with": with_.accuracy.values,
    }
    configuration = {
        "data": {"name": demo.data.name, "fingerprint": demo.data.fingerprint},
        "long": asdict(LONG),
        "runs": [one["key"] for one in demo.records],
    }
    return new_record(configuration, result)


def note(result: Record) -> str:
    """Say what was done on what, from the result of a record."""
    return (
        f"Which of {result['classes']} photographs is a patch of 16×16 cut from? See and "
        f"shrink: one network of {result['parameters']:,} parameters, "
        f"{100 * result['accuracy']:.1f} % right on test patches, is shrunk without labels or "
        'training; "without" drops as many of each layer\'s smallest filters. Train: mean of '
        f"{len(result['with'])} seeds ± half of the 95 % interval."
    )


def rows(result: Record) -> list[tuple[str, str, str]]:
    """Return a row for each thing shown, under `HEAD`, from the result of a record."""
    with_, without = Estimate.of(result["with"]), Estimate.of(result["without"])
    return [
        (f"see: different maps of {result['maps']} (rank)", f"{result['rank']:.0f}", ""),
        *(
            (
                f"shrink: accuracy at {100 * one['parameters']:.0f} % of the parameters",
                f"{100 * one['accuracy']:.1f} %", f"{100 * one['smallest']:.1f} %",
            )
            for one in result["smaller"]
        ),
        (
            f"train: accuracy after {result['epochs']} epochs",
            f"{with_.text(1, 100, sign='')} %", f"{without.text(1, 100, sign='')} %",
        ),
        ("train: gain, points", gain(result["with"], result["without"]), ""),
    ]  # fmt: skip


def gain(with_: Sequence[float], without: Sequence[float]) -> str:
    """Write the mean difference of accuracies, paired by seed, in points."""
    pairs = zip(with_, without, strict=True)
    return Estimate.of([a - b for a, b in pairs]).text(1, 100).replace("-", "−")


def figure(demo: Demo) -> Figure:
    """Draw see, shrink and train side by side."""
    drawing = new_figure(12, 3.8)
    see, shrink, train = drawing.subplots(1, 3)
    _see(see, demo)
    _shrink(shrink, demo)
    _train(train, record(demo)["result"])
    for axes in (see, shrink, train):
        axes.spines[["top", "right"]].set_visible(False)
    return drawing


def _see(axes: Axes, demo: Demo) -> None:
    layers = demo.report.layers
    places = range(len(layers))
    axes.bar(places, [layer.filters for layer in layers], color="#dddddd", label="maps")
    ranks = [layer.effective_rank for layer in layers]
    axes.bar(places, ranks, color=OURS, label="of them different\n(effective rank)")
    axes.set_xticks(places, [str(place + 1) for place in places])
    axes.set_xlabel("convolution, from the input")
    axes.set_title("See: how many maps say something new", fontsize=11)
    axes.legend(frameon=False, loc="upper left")


def _shrink(axes: Axes, demo: Demo) -> None:
    shares = [100.0, *(100 * one.parameters for one in demo.smaller)]
    ours = [demo.accuracy, *(one.accuracy for one in demo.smaller)]
    others = [demo.accuracy, *(one.smallest for one in demo.smaller)]
    for values, color, name in (
        (others, OTHERS, "smallest filters dropped"),
        (ours, OURS, "convsim.shrink"),
    ):
        axes.plot(shares, [100 * value for value in values], "o-", color=color, label=name)
    axes.set_xticks([100 * share for share in (1, *SHARES)])
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("parameters left, %")
    axes.set_title("Shrink: test accuracy without training, %", fontsize=11)
    axes.legend(frameon=False, loc="lower left")


def _train(axes: Axes, result: Record) -> None:
    by_seed = [[100 * value for value in result[name]] for name in ("without", "with")]
    for pair in zip(*by_seed, strict=True):
        axes.plot([0, 1], pair, color="#cccccc", zorder=1)
    for place, (values, color) in enumerate(zip(by_seed, (OTHERS, OURS), strict=True)):
        axes.plot([place] * len(values), values, "o", color=color)
        axes.plot([place - 0.15, place + 0.15], [fmean(values)] * 2, color=color, lw=3)
    axes.set_xticks([0, 1], ["without the penalty", "with it"])
    axes.set_xlim(-0.5, 1.5)
    gained = gain(result["with"], result["without"])
    axes.set_xlabel(f"a line for each seed; gain {gained} points")
    axes.set_title(f"Train: test accuracy after {result['epochs']} epochs, %", fontsize=11)


def write_demo(demo: Demo, folder: Path) -> dict[str, Path]:
    """Write figure, table, page, and the page of the network's redundancy; return their paths."""
    paths = {
        "page": folder / "demo.html",
        "network": folder / "redundancy.html",
        "figure": folder / "demo.png",
        "table": folder / "demo.md",
        "record": folder / "demo.json",
    }
    folder.mkdir(parents=True, exist_ok=True)
    picture = figure_bytes(figure(demo), dpi=150)
    paths["figure"].write_bytes(picture)
    where = details(demo.records, "Training")
    whole = record(demo)
    result = whole["result"]
    paths["record"].write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    table, said = markdown_table(HEAD, rows(result)), note(result)
    paths["table"].write_text(f"# {TITLE}\n\n{table}\n{said}\n\n{where}\n", encoding="utf-8")
    demo.report.save_html(paths["network"])
    paths["page"].write_text(
        page(
            TITLE, HEAD, rows(result),
            pictures=[("See, shrink and train, a panel each", picture)],
            above=said, below=where,
            links={"The network's redundancy, layer by layer": paths["network"].name},
        ),
        encoding="utf-8",
    )  # fmt: skip
    return paths
