"""``convsim shrink`` as a user meets it."""

import json
from functools import partial
from importlib import import_module

import pytest
import torch
from PIL import Image

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


def test_channels_stay_in_multiples(run, tmp_path):
    run(*SMALL, "--keep-channels", "0.6", "--multiple-of", "4", "--out", tmp_path)
    layers = json.loads((tmp_path / "report.json").read_text())["layers"]
    assert all(layer["channels"]["after"] % 4 == 0 for layer in layers[:-1])


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


@pytest.fixture
def classes(tmp_path):
    """Images of noise in two class folders, which nothing but their own pixels tells apart."""
    for label in ("a", "b"):
        (tmp_path / "noise" / label).mkdir(parents=True)
        for n in range(20):
            pixels = torch.randint(256, (12, 12, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "noise" / label / f"{n}.png")
    return tmp_path / "noise"


def test_a_run_is_shrunk_by_its_folder_and_scored_on_its_own_test_images(run, classes, tmp_path):
    trained, small = tmp_path / "run", tmp_path / "small"
    run.func("train", classes, "--out", trained, "--width", "4", "--epochs", "1")
    record = json.loads((trained / "record.json").read_text())
    answer = run(trained, "--out", small, "--keep-channels", "1")
    accuracy = 100 * record["result"]["test_accuracy"]
    assert f"accuracy on 8 test images: before {accuracy:.2f} %" in answer.out
    assert "standardised by" in answer.err
    refused = run(trained, "--out", trained, "--keep-channels", "0.5", code=2)
    assert "holds a run of convsim train" in refused.err
    assert "load_shrunk" in run.func("measure", small, "--data", "digits", code=2).err
    lost = run(tmp_path / "nothing", "--out", small, "--keep-channels", "0.5", code=2)
    assert "There is no folder" in lost.err


def test_a_network_of_ones_own_may_have_seen_other_images(run, tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(import_module("own_net").make().state_dict(), "w.pt")
    answer = run(
        "own_net:make", "--weights", "w.pt", "--data", "digits", "--images", "50",
        "--keep-channels", "1", "--out", "small",
    )  # fmt: skip
    assert "give --preprocess" in answer.err


def test_a_network_that_does_not_fit_is_told_before_anything_is_written(
    run, classes, tmp_path, monkeypatch
):
    (tmp_path / "grey_net.py").write_text(
        "from torch import nn\n"
        "def make(channels=1, outputs=10):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))\n"
        "def narrow():\n"
        "    return make(3, 1)\n"
        "def fits():\n"
        "    return make(3, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    train = partial(run.func, "train", classes, "--out", "one", "--epochs", "1")
    wrong = train("--model", "grey_net:make", code=2)
    assert "takes 1 channels, the second axis: give images of 1 channels" in wrong.err
    assert "--size" not in wrong.err
    wrong = train("--model", "grey_net:narrow", code=2)
    assert "must put out (N, 2), a number for each class" in wrong.err
    assert not (tmp_path / "one" / "last.ckpt").exists()
    train("--model", "grey_net:fits", "--method", "none")
