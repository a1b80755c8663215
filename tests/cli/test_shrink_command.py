"""``convsim shrink`` as a user meets it."""

import json
from functools import partial

import pytest
import torch

import convsim
from convsim.lab.models import build_model


@pytest.fixture
def run(run):
    return partial(run, "shrink")


SMALL = ["cnn", "--width", "4", "--data", "digits", "--images", "200"]


def test_a_network_is_shrunk_saved_and_rebuilt(run, tmp_path):
    torch.manual_seed(1)
    model = build_model("cnn", classes=10, channels=1, width=4)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    answer = run(
        *SMALL, "--weights", tmp_path / "w.pt", "--keep-parameters", "0.5",
        "--out", tmp_path / "small", "--html", tmp_path / "page" / "small.html",
        "--distill", "1", "--finetune", "1",
    )  # fmt: skip
    for text in ("accuracy on", "before", "after", "distilled", "finetuned", "→"):
        assert text in answer.out
    assert "Warning" not in answer.err
    assert "<!doctype html>" in (tmp_path / "page" / "small.html").read_text()
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    small = convsim.load_shrunk(model, tmp_path / "small")
    count = sum(p.numel() for p in small.parameters())
    assert count == report["parameters"]["after"] <= report["parameters"]["before"] / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "got none"),
        (["--keep-macs", "0.5", "--keep-channels", "0.5"], "--keep-macs and --keep-channels"),
        (["--keep-macs", "0"], "above 0 and at most 1"),
        (["--keep-macs", "50"], "Half is --keep-macs 0.5"),
        (["--keep-macs", "0.5", "--layers", "x"], "No module is selected"),
        (["--keep-macs", "0.5", "--images", "2"], "Ask for 10 to"),
    ],
)
def test_misuse_exits_with_2_and_says_what_is_wrong(run, tmp_path, options, message):
    answer = run(*SMALL, "--out", tmp_path, *options, code=2)
    assert message in " ".join(answer.err.replace("│", "").split())


def test_untrained_weights_are_warned_of(run, tmp_path):
    answer = run(*SMALL, "--keep-channels", "0.75", "--out", tmp_path)
    assert "untrained" in answer.err


def test_one_of_several_weights_in_a_checkpoint_is_chosen_by_name(run, tmp_path):
    states = {}
    for name in ("model", "ema"):
        states[name] = build_model("cnn", classes=10, channels=1, width=4).state_dict()
    torch.save(states, tmp_path / "w.pt")
    run(
        *SMALL, "--weights", tmp_path / "w.pt", "--entry", "ema", "--keep-channels", "1",
        "--out", tmp_path / "small",
    )  # fmt: skip
    model = build_model("cnn", classes=10, channels=1, width=4)
    small = convsim.load_shrunk(model, tmp_path / "small")
    torch.testing.assert_close(small[0].weight, states["ema"]["0.weight"], rtol=0, atol=1e-3)
    assert not torch.allclose(small[0].weight, states["model"]["0.weight"], atol=1e-2)


def test_distillation_in_bf16_learns_as_in_float32(run, tmp_path):
    figures = []
    for precision in ("float32", "bf16"):
        torch.manual_seed(1)
        answer = run(
            *SMALL, "--keep-channels", "0.5", "--out", tmp_path / precision, "--distill", "1",
            "--precision", precision,
        )  # fmt: skip
        figures.append(float(answer.out.rpartition("distilled ")[2].split()[0]))
    assert abs(figures[0] - figures[1]) < 10
