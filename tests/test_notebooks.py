"""Every notebook runs from its first cell to its last, and its file holds what comes out."""

import json

import pytest

from notebooks import NOTEBOOKS, run


def kinds(cell):
    """What a cell shows, without the numbers in it."""
    return [
        sorted(output["data"]) if "data" in output else output["output_type"]
        for output in cell["outputs"]
    ]


def test_there_are_five():
    assert [path.stem for path in NOTEBOOKS] == [
        "compare_penalties", "make_training_faster", "see_my_network", "shrink_a_timm_network",
        "write_your_own",
    ]  # fmt: skip


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_holds_its_outputs(path):
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    kept = [cell for cell in whole["cells"] if cell["cell_type"] == "code"]
    ran = [cell for cell in run(path) if cell["cell_type"] == "code"]
    assert [kinds(cell) for cell in ran] == [kinds(cell) for cell in kept], (
        "run: python docs/site/notebooks.py"
    )
    assert sum(bool(cell["outputs"]) for cell in kept) >= 2


def test_a_cell_that_fails_names_its_place(tmp_path):
    path = tmp_path / "bad.ipynb"
    cell = {"cell_type": "code", "source": ["x = 1\n", "x / 0"], "outputs": []}
    path.write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(ZeroDivisionError) as error:
        run(path)
    assert "bad.ipynb, cell 1" in str(error.traceback[-1].path)
