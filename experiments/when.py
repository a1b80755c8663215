"""Train the cells of experiment 19.

python experiments/when.py OUT DATA CELL METHOD…     (resumes if stopped)

Each cell keeps its records in OUT/CELL/records.jsonl. A method is written as for convsim compare.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from convsim.lab.comparison import compare, run_all
from convsim.lab.datasets import load_dataset
from convsim.lab.methods import Method, parse_method
from convsim.lab.records import read_records
from convsim.lab.runs import Optimizer, Recipe, Run
from convsim.lab.summary import reported

RATES = {"sgd": (0.2, 0.1, 0.4), "muon": (0.05, 0.02, 0.1)}
"""Learning rates to tune over; the first is the one that coefficients are tuned at."""


@dataclass(frozen=True)
class Cell:
    """One place of the map.

    Attributes:
        images: Training images, of which a tenth is held out.
        way: "bare", or "usual": with crops, mirroring and weight decay.
        width: The network's.
        epochs: The schedule's length.
        seeds: How many are reported, from 0.
        tuned_in: Of how many epochs the cell is whose coefficients and learning rates are taken;
            this one's own if None.
        optimizer: What trains.
        coefficient: Every method's, instead of the tuned one.
    """

    images: int
    way: Literal["bare", "usual"]
    width: int
    epochs: int
    seeds: int
    tuned_in: int | None = None
    optimizer: Optimizer = "sgd"
    coefficient: float | None = None

    @property
    def name(self) -> str:
        """What its folder is called."""
        kind = "" if self.optimizer == "sgd" else f"-{self.optimizer}"
        kind += "" if self.coefficient is None else f"-c{self.coefficient:g}"
        return f"{self.images}-{self.way}-w{self.width}-e{self.epochs}{kind}"

    @property
    def recipe(self) -> Recipe:
        """How its networks are trained."""
        usual = self.way == "usual"
        return Recipe(
            model="cnn", width=self.width, norm="batch", epochs=self.epochs, schedule="annealed",
            weight_decay=5e-4 if usual else 0.0, augment=usual, precision="bf16",
            optimizer=self.optimizer, lr=RATES[self.optimizer][0],
        )  # fmt: skip


CELLS = {
    cell.name: cell
    for cell in (
        Cell(50000, "usual", 16, 1, seeds=4),
        Cell(50000, "usual", 16, 2, seeds=3, tuned_in=1),
        Cell(50000, "usual", 16, 4, seeds=3, tuned_in=1),
        Cell(50000, "usual", 16, 8, seeds=3, tuned_in=1),
        Cell(50000, "usual", 16, 1, seeds=3, optimizer="muon"),
        Cell(50000, "usual", 8, 1, seeds=3),
        Cell(10000, "bare", 16, 2, seeds=4),
        Cell(10000, "bare", 16, 8, seeds=4, tuned_in=2),
        Cell(10000, "bare", 16, 24, seeds=3, tuned_in=2),
        Cell(10000, "usual", 16, 4, seeds=4),
        Cell(10000, "usual", 16, 16, seeds=3, tuned_in=4),
        Cell(10000, "bare", 8, 2, seeds=4),
        Cell(10000, "bare", 8, 8, seeds=4, tuned_in=2),
        Cell(2500, "bare", 16, 8, seeds=4),
        Cell(2500, "bare", 16, 32, seeds=4, tuned_in=8),
        Cell(2500, "usual", 16, 32, seeds=3),
    )
}
FIXED = {  # every method with one coefficient, at the learning rate that is best with its own
    name: replace(CELLS[name], tuned_in=CELLS[name].tuned_in or CELLS[name].epochs)
    for name in (
        "2500-bare-w16-e8", "2500-bare-w16-e32", "10000-bare-w16-e2", "10000-bare-w16-e8",
        "10000-bare-w8-e2", "10000-bare-w8-e8", "10000-usual-w16-e4", "50000-usual-w16-e1",
        "50000-usual-w16-e8",
    )
}  # fmt: skip
CELLS |= {
    cell.name: cell
    for fixed in FIXED.values()
    for cell in (replace(fixed, coefficient=1), replace(fixed, coefficient=0.3))
}


def chosen(records: Path, method: Method) -> tuple[Method, float]:
    """Read back with which coefficient and learning rate a cell reported a method."""
    for record in reported(read_records(records)):
        c = record["configuration"]
        if c["method"]["name"] == method.name:
            coefficients = tuple(c["method"]["coefficients"])
            return replace(method, coefficients=coefficients), c["recipe"]["lr"]
    raise SystemExit(f"{records} does not report {method.name!r} yet: train that cell first.")


def main() -> None:
    """Train what is not on record."""
    out, archive, name, *texts = sys.argv[1:]
    cell, methods = CELLS[name], [parse_method(text) for text in texts]
    data = load_dataset(archive)
    if cell.images < len(data.train_labels):
        data = data.subset(train=cell.images, seed=0)
    folder, seeds = Path(out) / name, range(cell.seeds)

    def report(run: Run, done: int, total: int) -> None:
        print(name, run.method.name, run.seed, done, total, file=sys.stderr, flush=True)

    if cell.tuned_in is None:
        rates = RATES[cell.optimizer]
        compare(
            data, cell.recipe, methods, seeds, folder,
            tuning_seeds=1, learning_rates=rates[1:], report=report,
        )  # fmt: skip
        return
    tuned = replace(cell, epochs=cell.tuned_in, coefficient=None)
    found = [chosen(Path(out) / tuned.name / "records.jsonl", method) for method in methods]
    if cell.coefficient is not None:
        found = [
            (replace(one, coefficients=(cell.coefficient,) if one.coefficients else ()), lr)
            for one, lr in found
        ]
    runs = [
        Run(one, seed, replace(cell.recipe, lr=lr), data) for seed in seeds for one, lr in found
    ]
    run_all(runs, folder, report=report)


if __name__ == "__main__":
    main()
