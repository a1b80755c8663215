"""Experiments can be run again, and their tables are what their records say."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from convsim.cli.app import app
from convsim.lab.paired import paired_tables
from convsim.lab.presentation import comparison_table, note
from convsim.lab.records import read_records
from convsim.lab.summary import reported, summarize

ROOT = Path(__file__).parent.parent / "experiments"
RUNS = sorted(ROOT.glob("[0-9]*/run"))
ARGUMENTS = {"14_larger_networks": ("vgg19", "modern")}


def of(pattern):
    return [
        pytest.param(path, id=str(path.relative_to(ROOT))) for path in sorted(ROOT.rglob(pattern))
    ]


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.parent.name)
def test_the_commands_of_an_experiment_are_commands(run, tmp_path):
    script = tmp_path / "NN" / "run"  # in a copy, for it writes beside itself
    script.parent.mkdir()
    script.write_bytes(run.read_bytes())
    (tmp_path / "setup.sh").write_bytes((ROOT / "setup.sh").read_bytes())
    for name in ("convsim", "python", "git"):
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "{tmp_path}/commands"\n')
        stub.chmod(0o755)
    for results in ("none", "data-aware"):
        (script.parent / "results" / results).mkdir(parents=True)
        (script.parent / "results" / results / "records.jsonl").touch()
    subprocess.run(
        ["bash", script, "cifar10", *ARGUMENTS.get(run.parent.name, ())],
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}, check=True,
    )  # fmt: skip
    commands = (tmp_path / "commands").read_text().splitlines()
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "convsim":  # parsed only: an unknown command, option or choice raises
            typer.main.get_command(app).commands[arguments[0]].make_context("", arguments[1:])
        elif program == "python" and not arguments[0].startswith(("-", "/build/")):  # a commit's
            assert (ROOT / "NN" / arguments[0]).resolve().exists()


@pytest.mark.parametrize("path", of("comparison.md"))
def test_a_comparison_is_what_its_records_say(path):
    text = path.read_text(encoding="utf-8")
    order = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    runs = reported(read_records(path.parent / "records.jsonl"))
    runs.sort(key=lambda record: order.index(record["configuration"]["method"]["name"]))
    summaries = summarize(runs)
    assert comparison_table(summaries) in text
    assert note(summaries) in text


@pytest.mark.parametrize("path", of("paired.md"))
def test_paired_differences_are_what_the_records_say(path):
    text = path.read_text(encoding="utf-8")
    method = re.match(r"\| (\S+) less", text)[1]
    order = re.findall(r"^\| (\S+) \|", text, re.MULTILINE)
    runs = reported(read_records(path.parent / "records.jsonl"))
    names = {record["configuration"]["method"]["name"] for record in runs}
    runs.sort(key=lambda record: [*order, method].index(record["configuration"]["method"]["name"]))
    assert text == paired_tables(runs, method)
    assert names <= {*order, method}


def test_no_page_is_kept():
    assert not [*ROOT.rglob("*.html")]
