"""Lay out what experiment 19 found, from whatever is on record.

python experiments/when_map.py RESULTS     (writes its tables and figure there)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import fmean, median

from matplotlib.figure import Figure
from when import CELLS, FIXED, Cell

from convsim.lab.records import Record, read_records
from convsim.lab.summary import Estimate, reported
from convsim.lab.tables import markdown_table

LABELS = {
    "none": "none",
    "recommended": "sampled maps, coefficient stays",
    "recommended:0.5": "sampled maps, falls to 0 by half",
    "recommended:0.1": "sampled maps, falls to 0 by a tenth",
    "cosine": "cosine orthogonality",
    "decov": "DeCov",
    "crossed": "crossed, kernels alone",
    "crossed-init": "crossed initialization",
    "authors": "authors' regularizer",
    "authors-init": "authors' initialization",
}
_ACROSS = 4  # panels side by side
DRAWN = ("recommended", "recommended:0.5", "cosine")
Runs = dict[str, dict[int, Record]]
"""Method → seed → record."""


def by_method(records: list[Record]) -> Runs:
    """Sort what looked at test images."""
    found: Runs = {}
    for record in reported(records):
        c = record["configuration"]
        found.setdefault(c["method"]["name"], {})[c["seed"]] = record
    return {name: found[name] for name in LABELS if name in found}


def accuracy(record: Record) -> float:
    """Read the test accuracy, in %."""
    return 100 * float(record["result"]["test_accuracy"])


def gain(runs: Runs, method: str) -> Estimate | None:
    """Compare a method with none over the seeds that both have."""
    own, control = runs.get(method, {}), runs.get("none", {})
    seeds = sorted(own.keys() & control.keys())
    return Estimate.of([accuracy(own[s]) - accuracy(control[s]) for s in seeds]) if seeds else None


def coefficient_of(runs: Runs, method: str) -> float | None:
    """Read the coefficient that a cell reports a method with."""
    of_one = next(iter(runs.get(method, {}).values()), None)
    given = of_one["configuration"]["method"]["coefficients"] if of_one else ()
    return next(iter(given), None)


def seconds(record: Record) -> float:
    """Read how long training with its initialization took."""
    result = record["result"]
    return float(result.get("seconds", 0) + result.get("initialization_seconds", 0))


def rows(cell: Cell, runs: Runs) -> list[tuple[str, ...]]:
    """Lay out a cell, method by method."""
    lines = []
    optimizer = "" if cell.optimizer == "sgd" else f", {cell.optimizer}"
    for method, own in runs.items():
        one = next(iter(own.values()))["configuration"]
        coefficient = coefficient_of(runs, method)
        found = gain(runs, method)
        lines.append((
            f"{cell.images * 9 // 10:,} {cell.way}{optimizer}", f"{cell.width}", f"{cell.epochs}",
            LABELS[method],
            "" if coefficient is None else f"{coefficient:g}", f"{one['recipe']['lr']:g}",
            f"{len(own)}", Estimate.of([accuracy(r) for r in own.values()]).text(1, sign=""),
            "" if method == "none" or found is None else found.text(1),
        ))  # fmt: skip
    return lines


def candidates(found: dict[Cell, Runs]) -> str:
    """Lay out the gain of one coefficient for all cells, form by form."""
    forms = [
        (c, method)
        for method in LABELS if method.startswith("recommended") for c in (0.3, 1.0, 3.0)
    ]  # fmt: skip
    lines: list[tuple[str, ...]] = []
    gains: dict[tuple[float, str], list[float]] = {form: [] for form in forms}
    for cell, fixed in FIXED.items():
        line = [cell]
        control = {"none": found.get(CELLS[cell], {}).get("none", {})}  # has no coefficient to fix
        for c, method in forms:
            own = control | found.get(replace(fixed, coefficient=c), {})
            if method not in own and coefficient_of(found.get(CELLS[cell], {}), method) == c:
                own = found[CELLS[cell]]
            one = gain(own, method)
            line.append("" if one is None else one.text(1))
            gains[c, method] += [] if one is None else [one.mean]
        lines.append(tuple(line))
    means = [f"{fmean(own):+.1f} ({len(own)})" if own else "" for own in gains.values()]
    head = ("cell", *(f"{LABELS[method]}, c = {c:g}" for c, method in forms))
    return markdown_table(head, [*lines, ("mean (cells)", *means)])


def draw(found: dict[Cell, Runs]) -> Figure:
    """Draw gains over the schedule's length, a panel for each data, way and width."""
    tuned = [cell for cell in found if cell.coefficient is None]
    groups = [
        (key, list(own))
        for key, own in groupby(tuned, key=lambda c: (c.images, c.way, c.width, c.optimizer))
    ]
    lines = -(-len(groups) // _ACROSS)
    figure = Figure(figsize=(3.6 * _ACROSS, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, _ACROSS, sharey=True, squeeze=False).flat
    for panel, ((images, way, width, optimizer), cells) in zip(panels, groups, strict=False):
        for method in DRAWN:
            points = [(c.epochs, gain(found[c], method)) for c in cells]
            drawn = [(epochs, g) for epochs, g in points if g is not None]
            panel.errorbar(
                [epochs for epochs, _ in drawn], [g.mean for _, g in drawn],
                [g.half_width if len(g.values) > 1 else 0 for _, g in drawn],
                marker="o", capsize=3, label=LABELS[method],
            )  # fmt: skip
        panel.axhline(0, color="grey", linewidth=0.8)
        kind = "" if optimizer == "sgd" else f", {optimizer}"
        panel.set(title=f"{images * 9 // 10:,} images, {way}, width {width}{kind}", xlabel="epochs")
        panel.set(xscale="log")
        panel.set_xticks([c.epochs for c in cells], [f"{c.epochs}" for c in cells])
        panel.minorticks_off()
    figure.axes[0].legend(fontsize="small")
    figure.supylabel("gain over no penalty, points")
    for panel in figure.axes[len(groups) :]:
        panel.set_axis_off()
    return figure


def main() -> None:
    """Write the tables and the figure."""
    results = Path(sys.argv[1])
    records = {c: read_records(results / name / "records.jsonl") for name, c in CELLS.items()}
    found = {c: runs for c, own in records.items() if (runs := by_method(own))}
    head = ("trained on", "width", "epochs", "method", "coefficient", "learning rate", "seeds",
            "accuracy, %", "gain, points")  # fmt: skip
    tuned = [(c, runs) for c, runs in found.items() if c.coefficient is None]
    table = markdown_table(head, [line for c, runs in tuned for line in rows(c, runs)])
    (results / "table.md").write_text(table, encoding="utf-8")
    fixed = candidates(found)
    (results / "candidates.md").write_text(fixed, encoding="utf-8")
    every = [r for own in records.values() for r in own]
    large = [r for own in (records[c] for c in records if c.images == 50000) for r in own]
    hours = sum(map(seconds, every)) / 3600
    said = (
        f"{len(every)} runs, {len(large)} of them on 45,000 images; {hours:.1f} hours of one "
        "thread on cores that others used too. Seconds a run (median), by cell and method:\n\n"
    )
    times = [
        (c.name, LABELS[method], f"{median(map(seconds, own.values())):.0f}")
        for c, runs in found.items() for method, own in runs.items()
    ]  # fmt: skip
    (results / "time.md").write_text(said + markdown_table(("cell", "method", "s"), times))
    draw(found).savefig(results / "figure.png", dpi=120)
    print(table, fixed, said, sep="\n")


if __name__ == "__main__":
    main()
