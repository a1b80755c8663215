"""A share of benchmarks/shrink.py: every method cuts the same network to the same size."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import shrink as benchmark

from convsim.lab.datasets import load_dataset


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    options = argparse.Namespace(
        model="cnn", width="4", epochs=1, precision="float32", runs=tmp_path_factory.mktemp("runs"),
        images=100, layers=[], lr=[0.1],
    )  # fmt: skip
    return benchmark.Case(options, load_dataset("digits"), seed=0)


@pytest.mark.parametrize(("kind", "share"), [("channels", 0.5), ("parameters", 0.25)])
def test_every_method_cuts_to_the_same_size_and_no_further(case, kind, share):
    sizes = {}
    for name, make in benchmark.methods(case, kind, share):
        small = make()
        with torch.no_grad():
            assert small(case.batches[0]).isfinite().all(), name
        sizes[name] = sum(p.numel() for p in small.parameters())
    whole = sum(p.numel() for p in case.model.parameters())
    budget = sizes.pop(benchmark.BUDGET, None)
    assert len(sizes) >= 10
    assert len(set(sizes.values())) == 1, sizes
    if budget is not None:
        assert max(budget, *sizes.values()) <= share * whole
