"""The tables of docs/gpu.md, made from the records: `python benchmarks/gpu/tables.py`.

Reads results/*.json and results/runs*.jsonl, and writes between the page's marks.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "gpu.md"
NOT_RUN = "Not run yet."
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""95 % quantiles for 2, 3, … values."""
Record = dict[str, Any]


def main() -> None:
    """Write every table into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


def page(text: str, results: Path) -> str:
    """Put each table between its marks."""
    for name, make in TABLES.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        table = "\n".join(make(results)) or NOT_RUN
        text = mark.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
    return text


def stages(results: Path, stage: str) -> list[Record]:
    """Read the records of a stage, of all calls in the order of their files.

    What a later one has measured again is left out of the earlier, and so is a failure of what has
    been measured in any.
    """
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    records = [one for one in found if one["stage"] == stage]
    measured: set[str] = set()
    for record in reversed(records):
        own = record["results"]
        record["results"] = {name: own[name] for name in own if name not in measured}
        measured |= own.keys()
    for record in records:
        failed = record["failures"]
        record["failures"] = {name: failed[name] for name in failed if name not in measured}
    return records


def where(record: Record) -> str:
    """Say on what a record was made."""
    about = record["environment"]
    return (
        f"{about['device']}, PyTorch {about['torch']}, {about['date'][:10]}, source "
        f"`{about['source']}`"
    )


def correctness(results: Path) -> list[str]:
    """Sum up the checks by kind, and name what failed."""
    lines = []
    for record in stages(results, "correctness"):
        kinds: dict[str, list[Record]] = defaultdict(list)
        for name, found in record["results"].items():
            kinds[kind(name)].append(found)
        lines += [f"{where(record)}:", "", "| what | items | largest error | allowed |"]
        lines += ["|---|---:|---:|---:|"]
        for name, items in kinds.items():
            errors = [item["worst"] for item in items if "worst" in item]
            limits = [item["limit"] for item in items if "limit" in item]
            cells = (f"{max(errors):.1e}", f"{max(limits):.0e}") if errors else ("", "")
            lines.append(f"| {name} | {len(items)} | {cells[0]} | {cells[1]} |")
        lines += ["", *failures(record)]
    return lines


def kind(item: str) -> str:
    """Name what an item is one of."""
    first, *rest = item.split(", ")
    return f"{first}, bf16, channels last" if rest[-1:] == ["channels last"] else first


def failures(record: Record) -> list[str]:
    """List what failed, and what waited for the device."""
    lines = [f"- {name}: `{own['error'][:160]}`" for name, own in record["failures"].items()]
    waits = [
        name.removeprefix("no waiting, ")
        for name, own in record["results"].items()
        if own.get("waits")
    ]
    if waits:
        lines.append(f"- waiting for the device: {', '.join(waits)}")
    return ["Failed or waited:", "", *lines, ""] if lines else ["Nothing failed.", ""]


def weights(results: Path) -> list[str]:
    """Lay out the times of value and gradient of each weight list."""
    lines = []
    for record in stages(results, "weights"):
        rate = record["results"].get("copy bandwidth", {}).get("GB_per_s", {}).get("median")
        lines += [f"{where(record)}; a large copy moves {rate or 0:,.0f} GB/s:", ""]
        for item, found in record["results"].items():
            if not item.endswith(": times"):
                continue
            name = item.removesuffix(": times")
            size = record["results"].get(f"{name}: size", {})
            floor = size.get("floor of weights, ms")
            lines += [
                f"| {name}, {size.get('weights', 0) / 1e6:.1f} M weights | median, ms | quartiles "
                "| ÷ floor | ÷ L2 |",
                "|---|---:|---:|---:|---:|",
            ]
            if floor:
                lines.append(f"| floor: 16 bytes a weight | {floor:.3f} | | 1.00 | |")
            for variant, own in found["variants"].items():
                ms = own["ms"]
                by = f"{ms['median'] / floor:.2f}" if floor else ""
                quartiles = (
                    f"{ms['low']:.3f}–{ms['high']:.3f}" if ms["samples"] > 1 else "one sample"
                )
                lines.append(
                    f"| {variant} | {ms['median']:.3f} | {quartiles} | {by} | "
                    f"{own['ratio']['median']:.2f} |"
                )
            lines.append("")
        lines += failures(record)
    return lines


def steps(results: Path) -> list[str]:
    """Lay out the times of training steps."""
    lines = []
    for record in stages(results, "steps"):
        lines += [f"{where(record)}:", ""]
        for item, found in record["results"].items():
            if not item.endswith(": times"):
                continue
            lines += [
                f"| {item.removesuffix(': times')} | median, ms | ÷ plain, median (quartiles) |",
                "|---|---:|---:|",
            ]
            for variant, own in found["variants"].items():
                ratio = own["ratio"]
                lines.append(
                    f"| {variant} | {own['ms']['median']:.2f} | {ratio['median']:.3f} "
                    f"({ratio['low']:.3f}–{ratio['high']:.3f}) |"
                )
            lines.append("")
        lines += failures(record)
    return lines


def evidence(results: Path) -> list[str]:
    """Lay out test accuracies, and gains paired by seed, by network, recipe and budget."""
    records = [
        json.loads(line)
        for path in sorted(results.glob("runs*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    groups: dict[tuple[Any, ...], dict[tuple[str, float], dict[int, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for record in records:
        run = record["run"]
        if not (run["tuning"] or record["rehearsal"]):
            method = f"{run['penalty']}, falling" if run["falling"] else run["penalty"]
            group = (run["network"], run["recipe"], run["epochs"])
            accuracy = 100 * record["test_accuracy"]
            groups[group][method, run["factor"]][run["seed"]] = accuracy
    lines = []
    for (network, recipe, epochs), methods in sorted(groups.items()):
        lines += [
            f"| {network}, {recipe} recipe, {epochs} epochs | × preset | seeds | accuracy, % "
            "| gain, points |",
            "|---|---:|---:|---:|---:|",
        ]
        none = methods.get(("none", 0.0), {})
        for (method, factor), scores in methods.items():
            gains = [scores[seed] - none[seed] for seed in scores if seed in none]
            own = ("", "") if method == "none" else (f"{factor:g}", interval(gains, sign="+"))
            lines.append(
                f"| {method} | {own[0]} | {len(scores)} | {interval(scores.values())} | {own[1]} |"
            )
        lines.append("")
    return lines


def interval(values: Iterable[float], sign: str = "") -> str:
    """Write a mean with the half width of its 95 % interval (Student's t)."""
    numbers = list(values)
    if not numbers:
        return ""
    written = f"{mean(numbers):{sign}.2f}"
    if len(numbers) < 2:
        return written
    quantile = _STUDENT[min(len(numbers), len(_STUDENT) + 1) - 2]
    half = quantile * stdev(numbers) / len(numbers) ** 0.5
    return f"{written} ± {half:.2f}"


def shrink(results: Path) -> list[str]:
    """Lay out accuracies of networks made smaller."""
    lines = []
    for record in stages(results, "shrink"):
        rows = [(name, own) for name, own in record["results"].items() if "test_accuracy" in own]
        if rows:
            lines += [f"{where(record)}:", ""]
            lines += ["| network | parameters | accuracy, % | shrinking took, s |"]
            lines += ["|---|---:|---:|---:|"]
        for name, own in rows:
            took = f"{own['shrinking_s']:.1f}" if "shrinking_s" in own else ""
            lines.append(
                f"| {name} | {own['parameters']:,} | {100 * own['test_accuracy']:.2f} | {took} |"
            )
        lines += ["", *failures(record)] if rows or record["failures"] else []
    return lines


TABLES = {
    "correctness": correctness,
    "weights": weights,
    "steps": steps,
    "evidence": evidence,
    "shrink": shrink,
}

if __name__ == "__main__":
    main()
