"""How far a network can shrink, or its schedule, until it falls below the control of an experiment.

python experiments/frontier.py epochs|width EXPERIMENT OUT DATA     (resumes)

Each method keeps the coefficient and learning rate that EXPERIMENT chose; runs that it has on
record are not repeated. Writes records.jsonl, table.md and figure.png to OUT.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import torch
from matplotlib.figure import Figure
from torch import nn

from convsim.lab.comparison import run_all
from convsim.lab.datasets import load_dataset
from convsim.lab.files import locked
from convsim.lab.methods import METHODS, Method
from convsim.lab.models import build_model
from convsim.lab.records import Record, append_record, read_records
from convsim.lab.runs import Recipe, Run
from convsim.lab.summary import Estimate, reported
from convsim.lab.tables import markdown_table

AXES = {"epochs": (2, 3, 4, 5, 6), "width": (4, 6, 8, 11, 16)}
COMPARED = ("none", "data-aware")
SEEDS = range(3)


def chosen_by(experiment: Path) -> dict[str, tuple[Method, Recipe]]:
    """Read back how an experiment trained each method in the end."""
    found = {}
    for record in reported(read_records(experiment)):
        c = record["configuration"]
        name = c["method"]["name"]
        if name in COMPARED:
            coefficients = tuple(c["method"]["coefficients"])
            found[name] = (replace(METHODS[name], coefficients=coefficients), Recipe(**c["recipe"]))
    return {name: found[name] for name in COMPARED}


def cost(axis: str, recipe: Recipe, record: Record) -> dict[str, float]:
    """Measure what the axis saves: epochs and seconds, or parameters and multiplications."""
    if axis == "epochs":
        return {"epochs": recipe.epochs, "seconds": record["result"]["seconds"]}
    model = build_model(
        recipe.model, classes=10, width=recipe.width, norm=recipe.norm, activation=recipe.activation
    )
    count = 0

    def add(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal count
        count += output[0].numel() * module.weight[0].numel()  # type: ignore[operator, index]

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    model(torch.zeros(1, 3, 32, 32))
    return {"parameters": record["effective"]["parameters"], "multiplications": count}


def crossing(costs: Iterable[float], scores: Iterable[float], target: float) -> float | None:
    """Find the cost at which scores first reach a target, along straight lines in log(cost)."""
    points = sorted(zip(costs, scores, strict=True))
    if points[0][1] >= target:
        return points[0][0]
    for (a, low), (b, high) in pairwise(points):
        if high >= target:
            share = (target - low) / (high - low)
            return math.exp((1 - share) * math.log(a) + share * math.log(b))
    return None


Runs = dict[tuple[str, int], list[Run]]
"""Method and step of the axis → its runs."""
Costs = dict[str, dict[int, dict[str, float]]]
Scores = dict[str, dict[int, Estimate]]
"""Method → step → what it costs, and its accuracy in %."""


def planned(axis: str, experiment: Path, archive: str) -> Runs:
    """List the runs: each method as the experiment trained it, at every step of the axis."""
    data = load_dataset(archive).subset(train=10000, seed=0)
    return {
        (method, step): [
            Run(how, seed, replace(recipe, **{axis: step}), data)  # type: ignore[arg-type]
            for seed in SEEDS
        ]
        for method, (how, recipe) in chosen_by(experiment).items()
        for step in AXES[axis]
    }


def train(runs: Runs, experiment: Path, folder: Path) -> dict[str, Record]:
    """Train what neither the folder nor the experiment has on record."""
    flat = [run for own in runs.values() for run in own]
    with locked(folder):
        on_record = {record["key"] for record in read_records(folder / "records.jsonl")}
        wanted = {run.key for run in flat} - on_record
        for record in read_records(experiment):
            if record["key"] in wanted:
                append_record(folder / "records.jsonl", record)
        return run_all(
            flat, folder, jobs=2,
            report=lambda run, i, n: print(i, n, run.method.name, run.seed, file=sys.stderr),
        )  # fmt: skip


def measured(axis: str, runs: Runs, done: dict[str, Record]) -> tuple[Costs, Scores]:
    """Gather what every step costs and how accurate it is."""
    costs: Costs = {method: {} for method in COMPARED}
    scores: Scores = {method: {} for method in COMPARED}
    for (method, step), own in runs.items():
        records = [done[run.key] for run in own]
        scores[method][step] = Estimate.of([100 * r["result"]["test_accuracy"] for r in records])
        each = [cost(axis, run.recipe, r) for run, r in zip(own, records, strict=True)]
        costs[method][step] = {key: median(c[key] for c in each) for key in each[0]}
    return costs, scores


def table(axis: str, costs: Costs, scores: Scores) -> str:
    """Lay accuracies out, and what each method needs to reach the control's last."""
    steps = AXES[axis]
    rows = [(f"{step}", *(own[step].text(1, sign="") for own in scores.values())) for step in steps]
    target = scores["none"][steps[-1]].mean
    lines = [markdown_table((axis, *COMPARED), rows), f"To the control's {target:.1f} %:\n"]
    for key, whole in costs["none"][steps[-1]].items():
        for method in COMPARED:
            found = crossing(
                [c[key] for c in costs[method].values()],
                [s.mean for s in scores[method].values()],
                target,
            )
            share = "not reached" if found is None else f"{found:.3g} {key}, {found / whole:.0%}"
            lines.append(f"- {method}: {share}")
    return "\n".join(lines) + "\n"


def areas(runs: Runs, done: dict[str, Record]) -> str:
    """Say how large the area under the curve of the longest schedule is, by method."""
    lines = ["\nArea under the curve of held-out accuracy over six epochs, mean:\n"]
    for method in COMPARED:
        own = runs[method, AXES["epochs"][-1]]
        curves = [done[run.key]["result"]["validation_accuracy"] for run in own]
        lines.append(f"- {method}: {100 * fmean(map(fmean, curves)):.1f} %")
    return "\n".join(lines) + "\n"


def figure(costs: Costs, scores: Scores) -> Figure:
    """Draw accuracy over the first kind of cost, with the control's last as a line."""
    drawing = Figure(figsize=(6, 4), layout="constrained")
    axes = drawing.add_subplot()
    key = next(iter(next(iter(costs["none"].values()))))
    for method in COMPARED:
        x = [c[key] for c in costs[method].values()]  # epochs and parameters are the same for all
        own = scores[method].values()
        axes.errorbar(
            x, [s.mean for s in own], [s.half_width for s in own],
            marker="o", capsize=3, label=method,
        )  # fmt: skip
    *_, last = scores["none"].values()
    axes.axhline(last.mean, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel=key, ylabel="test accuracy, %", xscale="log")
    axes.set_xticks(x, [f"{cost:,}" for cost in x])
    axes.minorticks_off()
    axes.legend()
    return drawing


def main() -> None:
    """Train, print, draw."""
    axis, source, out, archive = sys.argv[1:]
    experiment, folder = Path(source) / "results" / "records.jsonl", Path(out)
    runs = planned(axis, experiment, archive)
    done = train(runs, experiment, folder)
    costs, scores = measured(axis, runs, done)
    text = table(axis, costs, scores) + areas(runs, done) * (axis == "epochs")
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)
    figure(costs, scores).savefig(folder / "figure.png", dpi=120)


if __name__ == "__main__":
    main()
