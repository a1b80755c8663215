"""The README's Python runs as written, and its numbers are those on record."""

import json
import re
import tomllib
from pathlib import Path
from statistics import fmean

import pytest
import torch

import convsim
import front
from blocks import run
from convsim.lab.records import read_records
from results import ANSWER, ROOT

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
SAID = " ".join(ANSWER.read_text(encoding="utf-8").split())


def test_readme_code_runs():
    outcome = run(README)
    assert len(outcome.outputs) == 4
    assert outcome.outputs[1].startswith(("Look first at layer", "Little to gain"))
    assert "page.html" in outcome.files
    assert "smaller/model.safetensors" in outcome.files
    shrunk = outcome.names["shrunk"]
    assert shrunk.report.parameters.after <= 0.5 * shrunk.report.parameters.before
    assert all(torch.isfinite(p.grad).all() for p in outcome.names["model"].parameters())


def test_the_table_is_the_record():
    assert front.MARK.search(TEXT)[0] == f"<!-- results -->\n{front.results()}<!-- /results -->", (
        "run: python docs/site/front.py"
    )


def test_gains_are_paired_by_seed():
    """The same numbers once more, by numpy-free arithmetic on the raw lines."""
    lines = [json.loads(line) for line in front.GPU.read_text().splitlines()]
    scores = {
        (r["run"]["penalty"], r["run"]["seed"]): r["test_accuracy"]
        for r in lines
        if r["run"]["network"] == "cnn" and r["run"]["recipe"] == "modern"
        and r["run"]["epochs"] == 4 and not r["run"]["tuning"] and not r["run"]["falling"]
    }  # fmt: skip
    seeds = {seed for penalty, seed in scores if penalty == "none"}
    gain = 100 * fmean(scores["recommended", s] - scores["none", s] for s in seeds)
    (cells,) = re.findall(r"train, CIFAR-10, 4 epochs \|.*\| ([+−\d.]+) ±", front.results())
    assert float(cells.replace("−", "-")) == pytest.approx(gain, abs=0.051)


def test_capacity_is_the_record():
    table = (ROOT / "experiments" / "07_capacity" / "results" / "table.md").read_text()
    share = re.search(r"data-aware: \S+ parameters, (\d+)%", table)[1]
    assert f"{share} % of its parameters" in SAID


def cases(folder, **wanted):
    """The rows of a study on record, each a case with its answer, that have such values."""
    records = read_records(ROOT / "experiments" / folder / "results" / "records.jsonl")
    rows = [record["configuration"]["case"] | record["result"] for record in records]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def between(rows, key, unit=100):
    """Two numbers as the README writes them, the nearer to zero first."""
    numbers = sorted((unit * row[key] for row in rows), key=abs)
    return [f"{number:+.0f}".replace("-", "−") for number in (numbers[0], numbers[-1])]


def test_claims_about_kernels_are_the_records():
    said = SAID
    photographs = cases("01_orthogonality", inputs="photographs", kernels="normal")
    changes = sorted(row["relative"] for row in photographs)
    rises = sorted(row["rises"] for row in photographs)
    assert (
        f"changes by {100 * changes[0]:.0f} to {100 * changes[-1]:+.0f} % and rises in "
        f"{100 * rises[0]:.0f} to {100 * rises[-1]:.0f} % of draws"
    ).replace("-", "−") in said

    plain = {"activation": "none", "adversarial": False}
    signals, images = (cases("02_convolutional_similarity", axes=n, **plain) for n in (1, 2))
    rectified = cases("02_convolutional_similarity", activation="relu")
    assert {row["inputs"] for row in (*images, *rectified)} == {"photographs"}
    low, high = between(signals, "relative")
    assert f"{low} to {high} % in 1-d" in said
    low, high = between(images, "relative")
    assert f"{low} to {high} % for 3×3 kernels on photographs" in said
    low, high = between(rectified, "relative")
    assert f"**not after ReLU** there ({low} to {high} %)" in said
    assert not any(row["violations"] for row in cases("02_convolutional_similarity"))

    adjacent, every = (cases("03_adjacent_pairs", pairs=pairs) for pairs in ("adjacent", "all"))
    assert all(row["similarity_after"] > row["similarity_before"] for row in adjacent)
    low, high = between(adjacent, "relative")
    assert f"maps {low} to {high} %, against {' to '.join(between(every, 'relative'))} %" in said


def test_claims_about_inputs_are_the_records():
    folder = ROOT / "experiments" / "04_input_classes" / "results"
    layers = [
        layer["kernels"]["energy"]
        for name in ("cnn", "resnet18")
        for layer in json.loads((folder / f"{name}.json").read_text())["layers"]
        if "shortcut" not in layer["name"]  # 1×1: white and common are one
    ]
    white = sorted(100 * energy["white"] for energy in layers)
    between_channels = sorted(100 * (1 - energy["matched"]) for energy in layers)
    said = SAID
    assert f"{white[0]:.0f} to {white[-1]:.0f} % of 3×3 layers" in said
    assert f"leaves out: {between_channels[0]:.0f} to {between_channels[-1]:.0f} %" in said


def test_it_stays_short():
    assert len(TEXT.splitlines()) < 100


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_package_says_one_thing_of_itself():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = project["description"] + "."
    assert convsim.__doc__ == said
    assert f"abstract: {said}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_it_is_said_that_a_compiler_runs_and_where_its_library_lies():
    for page in ("README.md", "SECURITY.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "compiler" in text
        assert "~/.cache/convsim" in text
        assert "CONVSIM_HOME" in text
