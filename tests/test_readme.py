"""The README's Python runs as written, and its numbers are those on record."""

import re
from pathlib import Path

from blocks import run
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


def test_it_stays_short():
    assert len(TEXT.splitlines()) < 120
