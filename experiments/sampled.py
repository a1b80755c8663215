"""Compare both forms of experiments 20, 21, by seed: python experiments/sampled.py RESULTS."""

import sys
from pathlib import Path

from convsim.lab.records import Record, read_records
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table

FORMS = {"data-aware": "windows", "maps": "sampled maps"}
HEAD = ("set-up", *FORMS.values(), "sampled − windows", "seeds won")
Arm = dict[int, Record]
"""Seed → what came of it."""


def arm(folder: Path) -> Arm:
    """Read a form's results, seed by seed."""
    records = read_records(folder / "records.jsonl")
    return {r["configuration"]["seed"]: r["result"] for r in records}


def tested(own: Arm) -> dict[int, float]:
    """Read the test accuracy by seed, in %."""
    return {seed: 100 * float(result["test_accuracy"]) for seed, result in own.items()}


def row(name: str, pairs: list[tuple[Arm, Arm]]) -> tuple[str, ...]:
    """Lay out windows and sampled maps of one set-up, or of several together."""
    scores = [(tested(windows), tested(sampled)) for windows, sampled in pairs]
    means = [
        Estimate.of([x for one in scores for x in one[i].values()]).text(2, sign="")
        for i in range(len(FORMS))
    ]
    gains = [b[seed] - a[seed] for a, b in scores for seed in sorted(a.keys() & b.keys())]
    won = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
    return (name, *means, Estimate.of(gains).text(2), won)


def main() -> None:
    """Write table.md."""
    results = Path(sys.argv[1])
    sampled = "recommended" if (results / "elu-recommended").exists() else "maps"  # as of 21
    at = {
        name: (arm(results / f"{key}-data-aware"), arm(results / f"{key}-{sampled}"))
        for key, name in (("relu", "10 (ReLU)"), ("elu", "17 (ELU)"))
    }
    at = {name: pair for name, pair in at.items() if all(pair)}
    rows = [row(name, [pair]) for name, pair in at.items()]
    if len(rows) > 1:
        rows.append(row("both", [*at.values()]))
    text = markdown_table(HEAD, rows)
    (results / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
