"""Models of other libraries and of the user's own modules, by name."""

import re
import sys

import pytest
import torch

from convsim.cli import main
from convsim.errors import ConvsimError, DataError
from convsim.lab.datasets import load_dataset
from convsim.lab.launchers import train_one
from convsim.lab.methods import METHODS
from convsim.lab.models import build_model
from convsim.lab.runs import Recipe, Run

FACTORY = """
import torch

def network():
    return torch.nn.Conv2d(3, 4, 3)

def with_arguments(width):
    return network()

def number():
    return 3

constant = 3
"""


@pytest.fixture
def my_models(tmp_path, monkeypatch):
    (tmp_path / "my_models_for_convsim.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return "my_models_for_convsim"


def test_a_factory_in_the_working_directory(my_models):
    model = build_model(f"{my_models}:network", classes=10)
    assert model(torch.randn(1, 3, 5, 5)).shape == (1, 4, 3, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at.all:network", "'nowhere.at.all' cannot be imported.*timm:NAME"),
        ("my_models_for_convsim:absent", "no function or class 'absent'"),
        ("my_models_for_convsim:constant", "no function or class 'constant'"),
        ("my_models_for_convsim:with_arguments", "called without arguments.*width"),
        ("my_models_for_convsim:number", r"must return a torch\.nn\.Module; it returned a int"),
        ("transformers:resnext", "no architecture .* 'resnext'.*--pretrained"),
        ("transformers:bert", "cannot make an image classifier of 'bert'"),
    ],
)
@pytest.mark.usefixtures("my_models")
def test_what_makes_no_model(name, message):
    with pytest.raises(ConvsimError, match=message):
        build_model(name, classes=10)


def test_a_folder_of_transformers(tmp_path):
    build_model("transformers:resnet", classes=4).save_pretrained(tmp_path / "mine")
    model = build_model(f"transformers:{tmp_path / 'mine'}", classes=10)
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 4)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("torchvision:resnet18", "torchvision.models._api.load_state_dict_from_url"),
        ("timm:resnet18", "timm.create_model"),
        (
            "transformers:a/b",
            "transformers.AutoModelForImageClassification.from_pretrained",
        ),
    ],
)
def test_weights_that_cannot_be_had(name, loader, monkeypatch):
    asked = []

    def refuse(*args, **kwargs):
        asked.append(kwargs)
        raise OSError("the network is down")

    monkeypatch.setattr(loader, refuse)
    with pytest.raises(
        DataError, match=f"weights of '{name}' could not be loaded.*is down.*--weights"
    ):
        build_model(name, classes=10, pretrained=True)
    (options,) = asked
    assert options.get("weights_only", True)
    assert options.get("use_safetensors", True)
    assert not options.get("trust_remote_code", False)


def test_own_models_have_no_published_weights():
    with pytest.raises(ConvsimError, match="publishes no weights for its own model 'cnn'"):
        build_model("cnn", classes=10, pretrained=True)
    with pytest.raises(ConvsimError, match="a factory of yours"):
        build_model("a.b:c", classes=10, pretrained=True)


@pytest.fixture
def unfit_torchvision(tmp_path, monkeypatch):
    """A torchvision that is installed and breaks when it is imported."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    about = tmp_path / "torchvision-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("unfit_torchvision")
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "transformers:resnet"])
def test_a_torchvision_that_does_not_fit_is_one_sentence(name):
    with pytest.raises(ConvsimError, match=UNFIT):
        build_model(name, classes=2)


@pytest.mark.usefixtures("unfit_torchvision")
def test_training_names_a_torchvision_that_does_not_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convsim", "train", "digits", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert re.search(UNFIT, capsys.readouterr().err)
    run = Run(METHODS["none"], 0, Recipe(), load_dataset("digits"))
    with pytest.raises(ConvsimError, match=UNFIT):
        train_one(run, tmp_path)


UNFIT = r"torchvision 0\.1 does not fit torch .*operator nms does not exist.*pip install --upgrade"
