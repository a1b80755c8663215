"""A share of benchmarks/train_architectures.py: unmodified networks of timm, 20 steps."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import train_architectures as benchmark

SHARE = ("lcnet_035", "regnety_002", "starnet_s1")
RECORDS = {record["name"]: record for record in benchmark.read_records(benchmark.RECORDS)}


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", SHARE)
def test_all_is_finite_and_the_penalty_falls_where_it_clearly_did(name):
    strong, crossed = (benchmark.train(name, *benchmark.RUNS[run]) for run in ("strong", "crossed"))
    assert strong["finite"]
    assert crossed["finite"]
    recorded = RECORDS[name]["strong"]
    if recorded["after"] < 0.95 * recorded["before"]:
        assert strong["after"] < strong["before"]


def test_the_penalty_clearly_fell_for_two_of_the_share():
    runs = [RECORDS[name]["strong"] for name in SHARE]
    assert sum(run["after"] < 0.95 * run["before"] for run in runs) == 2


def test_the_table_is_that_of_the_records():
    records = benchmark.read_records(benchmark.RECORDS)
    assert benchmark.PAGE.read_text(encoding="utf-8") == benchmark.page(records)
    assert len({record["name"] for record in records}) >= 20
