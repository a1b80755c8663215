"""The README's Python runs as written, and its numbers are those on record."""

import re
from pathlib import Path
from statistics import median

from blocks import run
from convsim.lab.records import read_records
from results import MARK, ROOT, accuracy_table

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_readme_code_runs():
    outcome = run(README)
    assert len(outcome.outputs) == 2
    assert "LayerRedundancy(name='0', kind='Conv2d', filters=32" in outcome.outputs[1]
    assert outcome.names["matrix"].shape == (64, 64)


def test_the_table_is_the_record():
    assert MARK.search(TEXT)[0] == f"<!-- accuracy -->\n{accuracy_table()}<!-- /accuracy -->", (
        "run: python docs/site/results.py"
    )


def test_capacity_is_the_record():
    table = (ROOT / "experiments" / "07_capacity" / "results" / "table.md").read_text()
    share = re.search(r"data-aware: \S+ parameters, (\d+)%", table)[1]
    assert f"{share} % of its parameters" in " ".join(TEXT.split())


def test_costs_are_the_record():
    record = read_records(ROOT / "benchmarks" / "results" / "penalty_cost.jsonl")[-1][
        "milliseconds"
    ]
    kernels, steps = record["resnet18"], record["step-resnet18"]
    crossed = median(kernels["crossed, backward_()"])
    share = crossed / median(kernels["soft orthogonality, autograd"])

    def added(name):  # by the ratios within one round
        plain = steps["plain step"]
        return median(a / b for a, b in zip(steps[f"step with {name}"], plain, strict=True)) - 1

    said = " ".join(TEXT.split())
    assert f"{100 * share:.0f} % of soft orthogonality's time" in said
    assert f"{100 * added('crossed'):.1f} % of a ResNet-18's training step" in said
    assert f"{100 * added('recommended'):.0f} % to ResNet-18's" in said


def test_it_stays_short():
    assert len(TEXT.splitlines()) < 120


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
