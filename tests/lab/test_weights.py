"""Weights from files of several makers, and files that are refused."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from convsim.errors import ConvsimWarning, DataError
from convsim.lab.models import build_model
from convsim.lab.weights import load_weights


def network(width=2):
    torch.manual_seed(width)
    return build_model("cnn", classes=10, channels=1, width=width)


@pytest.fixture
def trained():
    torch.manual_seed(7)
    return build_model("cnn", classes=10, channels=1, width=2)


def wrappings(state):
    lightning = {"mean": torch.ones(1)} | {f"model.{k}": v for k, v in state.items()}
    return {
        "plain": state,
        "nested": {"state_dict": state, "epoch": 3},
        "data parallel": {"model": {f"module.{k}": v for k, v in state.items()}},
        "compiled": {f"_orig_mod.{k}": v for k, v in state.items()},
        "lightning": {"state_dict": lightning},
        "DDP(compile)": {f"module._orig_mod.{k}": v for k, v in state.items()},
        "compile(DDP)": {f"_orig_mod.module.{k}": v for k, v in state.items()},
        "lightning, compiled": {
            "state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}
        },
        "averaged alone": {"ema": state},
        "averaged by timm, wrapped": {
            "state_dict_ema": {f"module.{k}": v for k, v in state.items()}
        },
        "model_state": {"model_state": state, "optimizer_state": {"state": {}}},
    }


@pytest.mark.parametrize("wrapping", wrappings({}))
def test_checkpoints_of_many_makers(trained, tmp_path, wrapping):
    torch.save(wrappings(trained.state_dict())[wrapping], tmp_path / "weights.pt")
    model = network()
    load_weights(model, tmp_path / "weights.pt")
    assert all(map(torch.equal, model.state_dict().values(), trained.state_dict().values()))


def test_a_checkpoint_from_before_batches_were_counted(trained, tmp_path):
    state = trained.state_dict()
    old = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    assert old.keys() < state.keys()
    torch.save({"state_dict": {f"module.{k}": v for k, v in old.items()}}, tmp_path / "old.pt")
    model = network()
    load_weights(model, tmp_path / "old.pt")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in old.items())


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema", "ema"])
def test_raw_beside_averaged_weights_are_said(trained, tmp_path, averaged):
    path = tmp_path / "weights.pt"
    raw, other = trained.state_dict(), network(2).state_dict()
    torch.save({"state_dict": raw, averaged: other}, path)
    model = network()
    with pytest.warns(ConvsimWarning, match=f"the raw ones are taken.*--entry {averaged}"):
        load_weights(model, path)
    assert torch.equal(model.state_dict()["0.weight"], raw["0.weight"])
    load_weights(model, path, averaged)
    assert torch.equal(model.state_dict()["0.weight"], other["0.weight"])
    with pytest.raises(DataError, match=r"no weights under 'best'; what it has .*'state_dict'"):
        load_weights(model, path, "best")


def test_a_checkpoint_inside_itself_is_refused(tmp_path):
    circle = {}
    circle["model"] = circle
    torch.save(circle, tmp_path / "circle.pt")
    with pytest.raises(DataError, match="holds no state dict"):
        load_weights(network(), tmp_path / "circle.pt")


def test_safetensors(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    model = network()
    load_weights(model, tmp_path / "weights.safetensors")
    assert all(map(torch.equal, model.state_dict().values(), trained.state_dict().values()))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no weights file"),
        (lambda path: path.write_bytes(b"nonsense"), "cannot be read as weights alone"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "cannot be read as weights alone"),
        (lambda path: torch.save({"model": Evil()}, path), "cannot be read as weights alone"),
        (lambda path: torch.save([1, 2], path), "holds no state dict"),
        (lambda path: torch.save({"a": 1}, path), "holds no state dict"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "'0.weight'.* more missing, 'a'"),
        (lambda path: torch.save(network(3).state_dict(), path), r"shape \(3, 1, 3, 3\).*--width"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, capsys, write, message):
    path = tmp_path / "weights.pt"
    write(path)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match=message):
        load_weights(model, path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "executed" not in capsys.readouterr().out
