"""The command line as a user meets it."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

import convsim
from convsim.cli import main
from convsim.lab.records import read_records

CONVSIM = [sys.executable, "-c", "from convsim.cli import main; main()"]
TINY = ["--train-images", "150", "--width", "2", "--epochs", "2", "--batch-size", "64"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (stdout, stderr), after checking the exit code."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["convsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert (stop.value.code or 0) == code, captured.err
        return captured

    return run


def plain(text):
    """Drop colours and line wraps."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╰─╮╯]", "", text).split())


def test_help_and_version(run):
    assert run("--version").out.strip() == convsim.__version__
    text = plain(run("compare", "--help").out)
    for option in ("--method", "--seeds", "--jobs", "--train-images", "--schedule", "--out"):
        assert option in text
    assert "train" in run("-h").out


def test_train_writes_weights_and_record(run, tmp_path):
    answer = run("train", "digits", "--out", tmp_path, "--method", "recommended@0.5", *TINY)
    result = json.loads(answer.out)
    assert 0 <= result["test_accuracy"] <= 1
    assert "epochs" in answer.err or "accuracy" in answer.err
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["result"] == result
    assert record["configuration"]["method"]["coefficients"] == [0.5]
    from safetensors.torch import load_file

    from convsim.lab.models import build_model

    model = build_model("cnn", classes=10, channels=1, width=2)
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    again = run("train", "digits", "--out", tmp_path, "--method", "recommended@0.5", *TINY)
    assert json.loads(again.out)["test_accuracy"] == result["test_accuracy"]
    other = run("train", "digits", "--out", tmp_path, "--method", "none", *TINY, code=2)
    assert "belongs to a run with another configuration" in plain(other.err)
    assert other.out == ""


def test_compare_is_stopped_by_ctrl_c_and_goes_on(run, tmp_path):
    command = ["compare", "digits", "--out", tmp_path, "--seeds", "2", "--epochs", "6", *TINY[:4]]
    command += ["--method", "none", "--method", "recommended@0.1,1", "--tuning-seeds", "1"]
    process = subprocess.Popen(
        [*CONVSIM, *map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    records = tmp_path / "records.jsonl"
    deadline = time.monotonic() + 120
    while not records.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "go on from the last epoch" in plain(errors)
    before = read_records(records)
    assert 1 <= len(before) < 6
    answer = run(*command)
    after = read_records(records)
    assert after[: len(before)] == before
    assert len(after) == 2 + 4
    assert "recommended" in answer.out
    assert "similarity" in answer.out
    for name in ("comparison.png", "comparison.md", "comparison.html"):
        assert (tmp_path / name).stat().st_size > 500


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "nowhere", "--out", "x"], 2, "nowhere"),
        (["compare", "digits", "--out", "x", "--method", "best"], 2, "Unknown method 'best'"),
        (["compare", "digits"], 2, "Missing option '--out'"),
        (["train", "digits", "--out", "x", "--epochs", "0"], 2, "greater than or equal to 1"),
        (["train", "digits", "--out", "x", "--model", "resnet81"], 2, "Unknown model 'resnet81'"),
        (["train", "digits", "--out", "x", "--method", "authors@1,2"], 2, "takes one coefficient"),
        (["train", "digits", "--out", "x", "--train-images", "5000"], 2, "5000"),
        (["train", "digits", "--out", "x", "--norm", "layer"], 2, "'layer' is not one of"),
        (["train", "digits", "--out", "x", "--lr", "1e30", *TINY], 1, "became"),
        (["fly"], 2, "No such command 'fly'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_input(run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    answer = run(*arguments, code=code)
    assert message in plain(answer.err)
    assert answer.out == ""
    assert "Traceback" not in answer.err


def test_without_the_extra_the_install_command_is_named():
    hide = "import sys; sys.modules['typer'] = None\n" + CONVSIM[2]
    answer = subprocess.run(
        [sys.executable, "-c", hide], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "pip install 'convsim[lab]'" in answer.stderr
