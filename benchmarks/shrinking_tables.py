"""Tables and pictures of `shrink.py`'s records: `python benchmarks/shrinking_tables.py`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from convsim.lab.records import read_records
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
RECORDS, PAGE, FIGURE = (RESULTS / f"shrink.{kind}" for kind in ("jsonl", "md", "png"))
TRAINED, TUNED = RESULTS / "shrink_trained.jsonl", RESULTS / "shrink_rates.jsonl"
OURS, BUDGET = "convsim", "convsim, one budget"
Records = Sequence[dict[str, Any]]


def write() -> None:
    """Write the page and the picture."""
    records = read_records(RECORDS)
    page = [*shrunk_tables(records), *trained_tables(read_records(TRAINED))]
    PAGE.write_text("\n".join(page) + "\n", encoding="utf-8")
    figure(records)


def network(record: dict[str, Any]) -> str:
    """Name a network and what of it was cut."""
    return record["model"] + (" " + " ".join(record["layers"]) if record["layers"] else "")


def grouped(records: Records, *fields: str) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Part records by network and fields."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for one in records:
        groups[network(one), *(str(one[field]) for field in fields)].append(one)
    return groups


def figure_of(record: dict[str, Any]) -> float:
    """Return what stands for a method: ours as it comes, all others with BatchNorm re-estimated."""
    return 100 * float(record["bare" if OURS in record["method"] else "reestimated"])


def shrunk_tables(records: Records) -> list[str]:
    """Write a table for each network and target: one line a method, the mean over seeds."""
    lines = [
        "# Shrinking without training", "",
        "Test accuracy in %, the mean over seeds; BatchNorm re-estimated for all but convsim,",
        "whose figure with it stands in brackets. Behind it, what convsim's best is above that,",
        "paired by seed, with the 95 % interval. See `shrink.py`.", "",
    ]  # fmt: skip
    for (name, kind), own in grouped(records, "kind").items():
        shares = sorted({one["share"] for one in own}, reverse=True)
        seeds = sorted({one["seed"] for one in own})
        original = 100 * mean({(o["seed"], o["original"]): o["original"] for o in own}.values())
        lines += [
            f"## {name}: share of the {kind}", "",
            f"Before: {original:.1f}. Seeds {seeds}, {own[0]['images']} images.", "",
        ]  # fmt: skip
        rows = [
            (method, *(_cell([o for o in own if o["share"] == share], method) for share in shares))
            for method in dict.fromkeys(one["method"] for one in own)
        ]
        lines.append(markdown_table(["method", *(f"{share:.1%}" for share in shares)], rows))
    return lines


def _cell(own: Records, method: str) -> str:
    """Write a method's mean, and how far our best is above it."""
    these = {one["seed"]: one for one in own if one["method"] == method}
    if not these:
        return ""
    text = f"{mean(map(figure_of, these.values())):.1f}"
    if OURS in method:
        return text + f" ({100 * mean(one['reestimated'] for one in these.values()):.1f})"
    ours, theirs = (
        {seed: figure_of(one) for seed, one in each.items()} for each in (_best(own), these)
    )
    return beside(ours, theirs)


def beside(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Write a method's mean, and how far ours is above it by seed, where both are known."""
    if not theirs:
        return ""
    gains = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    text = f"{mean(theirs.values()):.1f}"
    return text + (f"; {Estimate.of(gains).text(1)}" if gains else "")


def _best(own: Records) -> dict[int, dict[str, Any]]:
    """Return our method: the one budget where there is one."""
    for method in (BUDGET, "convsim, uniform"):
        found = {one["seed"]: one for one in own if one["method"] == method}
        if found:
            return found
    return {}


def trained_tables(records: Records) -> list[str]:
    """Write what further training gives, with paired differences."""
    lines = [
        "# Trained further, at a quarter of the parameters", "",
        "Test accuracy in %. Learning rates: one epoch of a third of the training images, on",
        "others held out (`shrink_rates.jsonl`). Behind it, what convsim's one budget is above",
        "that, paired by seed, with the 95 % interval.", "",
    ] if records else []  # fmt: skip
    for name in dict.fromkeys(map(network, records)):
        of_network = [one for one in records if network(one) == name]
        columns = list(dict.fromkeys((one["kind"], one["trained"]) for one in of_network))
        seeds = sorted({one["seed"] for one in of_network})
        heads = [f"{kind}, {epochs} epoch(s)" for kind, epochs in columns]
        lines += [
            f"## {name}", "", f"Seeds {seeds}, of some methods fewer.", "",
        ]  # fmt: skip
        rows = []
        for method in dict.fromkeys(one["method"] for one in of_network):
            cells = []
            for column in columns:
                own = [o for o in of_network if (o["kind"], o["trained"]) == column]
                scores: dict[str, dict[int, float]] = defaultdict(dict)
                for one in own:
                    scores[one["method"]][one["seed"]] = 100 * float(one["after"])
                ours = {} if method == BUDGET else scores[BUDGET]
                cells.append(beside(ours, scores[method]))
            rows.append((method, *cells))
        lines.append(markdown_table(["method", *heads], rows))
    return lines


def figure(records: Records) -> None:
    """Draw accuracy over parameters, one line a method."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    shown = [one for one in records if one["kind"] == "parameters"]
    networks = list(dict.fromkeys(map(network, shown)))
    if not networks:
        return
    columns = min(2, len(networks))
    rows = math.ceil(len(networks) / columns)
    chart, axes = plt.subplots(
        rows, columns, figsize=(6 * columns, 4.2 * rows + 0.8), squeeze=False, layout="constrained"
    )
    methods = dict.fromkeys(o["method"] for o in shown)
    colors = {method: plt.get_cmap("tab20")(n % 20) for n, method in enumerate(methods)}
    lines = {}
    for axis in axes.flat[len(networks) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, networks, strict=False):
        own = [one for one in shown if network(one) == name]
        for method, color in colors.items():
            points: dict[float, list[float]] = defaultdict(list)
            for one in own:
                if one["method"] == method:
                    points[one["share"]].append(figure_of(one))
            if not points:
                continue
            line = sorted((100 * share, mean(values)) for share, values in points.items())
            style = {"linewidth": 2.5} if OURS in method else {"linewidth": 1, "alpha": 0.7}
            style |= {"color": color, "marker": "o", "markersize": 3}
            (lines[method],) = axis.plot(*zip(*line, strict=True), **style)
        axis.axhline(100 * mean(one["original"] for one in own), color="grey", linestyle=":")
        axis.set(title=name, xlabel="share of the parameters, %", ylabel="test accuracy, %")
    chart.legend(lines.values(), lines, loc="outside lower center", ncols=5, fontsize=7)
    chart.savefig(FIGURE, dpi=130)


if __name__ == "__main__":
    write()
