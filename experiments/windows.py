"""Train the data-aware form as experiment 10 did in the end, with other numbers of windows.

python experiments/windows.py OUT DATA WINDOWS…     (resumes if stopped)

Writes records.jsonl, with those of experiment 10 beside them, and paired.md to OUT.
"""

import sys
from dataclasses import replace
from pathlib import Path

from frontier import chosen_by

from convsim import ExpectedSimilarity
from convsim.lab.comparison import run_all
from convsim.lab.datasets import load_dataset
from convsim.lab.files import locked
from convsim.lab.paired import paired_tables
from convsim.lab.records import append_record, read_records
from convsim.lab.runs import Run
from convsim.lab.summary import reported
from convsim.penalties import PRESETS

BEST = Path(__file__).parent / "10_more_tuning" / "results" / "records.jsonl"


def main() -> None:
    """Train, and compare with the form of 10."""
    out, archive, *numbers = sys.argv[1:]
    folder, data = Path(out), load_dataset(archive).subset(train=10000, seed=0)
    how, recipe = chosen_by(BEST)["data-aware"]
    path = folder / "records.jsonl"
    with locked(folder):
        known = {record["key"] for record in read_records(path)}
        for record in reported(read_records(BEST)):
            name = record["configuration"]["method"]["name"]
            if name in ("none", "data-aware") and record["key"] not in known:
                append_record(path, record)
        for windows in numbers:
            name = f"data-aware-{windows}"
            penalty = ExpectedSimilarity(samples=int(windows))
            PRESETS[name] = replace(PRESETS["data-aware"], penalty=penalty)
            method = replace(how, name=name, regularizer=name)
            run_all(
                [Run(method, seed, recipe, data) for seed in range(10)], folder,
                report=lambda run, i, n: print(run.method.name, i, n, file=sys.stderr),
            )  # fmt: skip
    text = paired_tables(read_records(path), "data-aware")
    (folder / "paired.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
