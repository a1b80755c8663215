"""A share of benchmarks/train_architectures.py: unmodified networks of timm, 20 steps."""

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import train_architectures as benchmark

SHARE = random.Random(7).sample(benchmark.NETWORKS[:8], 4)  # of the smallest


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", SHARE)
def test_all_is_finite_and_the_penalty_falls(name):
    runs = [benchmark.train(name, *benchmark.RUNS[run]) for run in ("strong", "crossed")]
    assert all(run["finite"] and run["after"] < run["before"] for run in runs)


def test_the_table_is_that_of_the_records():
    records = benchmark.read_records(benchmark.RECORDS)
    assert benchmark.PAGE.read_text(encoding="utf-8") == benchmark.page(records)
    assert len({record["name"] for record in records}) >= 20
