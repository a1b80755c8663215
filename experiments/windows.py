"""Train experiment 10's data-aware form with another number of windows, seeds 0 to 9.

python samples.py WINDOWS PATH/cifar10-jpeg.tar.xz     (resumes if stopped)
"""

import sys
from pathlib import Path

from convsim import ExpectedSimilarity
from convsim.lab.comparison import run_all
from convsim.lab.datasets import load_dataset
from convsim.lab.files import locked
from convsim.lab.methods import Method
from convsim.lab.runs import Recipe, Run
from convsim.penalties import PRESETS
from convsim.penalties.presets import Preset

windows, archive = sys.argv[1:]
folder = Path(__file__).parent / "results" / windows
name = f"data-aware-{windows}"
PRESETS[name] = Preset(ExpectedSimilarity(samples=int(windows)), coefficient=3.0)
method = Method(name, regularizer=name, coefficients=(3.0,))
recipe = Recipe(model="cnn", width=16, norm="batch", lr=0.2, momentum=0.9, epochs=6)
data = load_dataset(archive).subset(train=10000, seed=0)
with locked(folder):
    run_all(
        [Run(method, seed, recipe, data) for seed in range(10)], folder, jobs=1,
        report=lambda run, done, total: print(run.method.name, done, total, file=sys.stderr),
    )  # fmt: skip
