"""Train the data-aware form as experiment 10 did in the end, with another number of windows.

python experiments/windows.py WINDOWS PATH/cifar10-jpeg.tar.xz     (resumes if stopped)
"""

import sys
from dataclasses import replace
from pathlib import Path

from frontier import chosen_by

from convsim import ExpectedSimilarity
from convsim.lab.comparison import run_all
from convsim.lab.datasets import load_dataset
from convsim.lab.files import locked
from convsim.lab.runs import Run
from convsim.penalties import PRESETS

HERE = Path(__file__).parent

windows, archive = sys.argv[1:]
folder = HERE / "16_windows" / "results" / windows
how, recipe = chosen_by(HERE / "10_more_tuning" / "results" / "records.jsonl")["data-aware"]
name = f"data-aware-{windows}"
PRESETS[name] = replace(PRESETS["data-aware"], penalty=ExpectedSimilarity(samples=int(windows)))
method = replace(how, name=name, regularizer=name)
data = load_dataset(archive).subset(train=10000, seed=0)
with locked(folder):
    run_all(
        [Run(method, seed, recipe, data) for seed in range(10)], folder, jobs=1,
        report=lambda run, done, total: print(run.method.name, done, total, file=sys.stderr),
    )  # fmt: skip
