"""Train experiment 25: the penalty in every step, in one of four, and not at all.

python experiments/every.py OUT DATA     (resumes if stopped; writes OUT/table.md)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from convsim.lab.comparison import run_all
from convsim.lab.datasets import load_dataset
from convsim.lab.methods import parse_method
from convsim.lab.models import Activation
from convsim.lab.records import Record, read_records
from convsim.lab.runs import Recipe, Run
from convsim.lab.summary import Estimate
from convsim.lab.tables import markdown_table

SEEDS, EVERY, IMAGES = range(10), 4, 10000
WHOLE = parse_method("recommended@1")
ARMS = (parse_method("none"), WHOLE, replace(WHOLE, name=f"every {EVERY}", every=EVERY))
SET_UPS: dict[str, Activation] = {"10 (ReLU)": "relu", "17 (ELU)": "elu"}
HEAD = ("set-up", "none, %", "every step, %", "one of four, %", "one of four − every", "seeds won")
Scores = dict[str, dict[int, float]]
"""Arm → seed → test accuracy in %."""


def recipe(activation: Activation) -> Recipe:
    """Return how experiments 10 and 17 train."""
    return Recipe(
        model="cnn", width=16, norm="batch", activation=activation, epochs=6, lr=0.2,
        precision="bf16",
    )  # fmt: skip


def scores(records: list[Record], activation: Activation) -> Scores:
    """Read one set-up's test accuracies."""
    found: Scores = {arm.name: {} for arm in ARMS}
    for record in records:
        c = record["configuration"]
        if c["recipe"]["activation"] == activation:
            accuracy = 100 * float(record["result"]["test_accuracy"])
            found[c["method"]["name"]][c["seed"]] = accuracy
    return found


def row(name: str, own: list[Scores]) -> tuple[str, ...]:
    """Lay out one set-up, or several together."""
    means = [
        Estimate.of([x for one in own for x in one[arm.name].values()]).text(2, sign="")
        for arm in ARMS
    ]
    whole, lazy = ARMS[1].name, ARMS[2].name
    gains = [one[lazy][seed] - one[whole][seed] for one in own for seed in one[lazy]]
    won = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
    return (name, *means, Estimate.of(gains).text(2), won)


def main() -> None:
    """Train what is not on record, and write the table."""
    out, archive = Path(sys.argv[1]), sys.argv[2]
    data = load_dataset(archive).subset(train=IMAGES, seed=0)

    def report(run: Run, done: int, total: int) -> None:
        print(run.method.name, run.recipe.activation, run.seed, done, total, file=sys.stderr)

    runs = [
        Run(arm, seed, recipe(activation), data)
        for seed in SEEDS for activation in SET_UPS.values() for arm in ARMS
    ]  # fmt: skip
    run_all(runs, out, report=report)
    records = read_records(out / "records.jsonl")
    found = {name: scores(records, activation) for name, activation in SET_UPS.items()}
    rows = [row(name, [own]) for name, own in found.items()]
    text = markdown_table(HEAD, [*rows, row("both", [*found.values()])])
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
