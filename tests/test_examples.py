"""Every example runs as it stands and prints what it promises."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ALONE = {
    "resnet_timm": "with the penalty: accuracy",
    "convnextv2_trainer": "'convsim/recommended': ",
    "audio_accelerate": "accuracy",
    "unet3d_fabric": "Dice on scans it has not seen: 0.",
    "cnn_lightning": "accuracy 0.",
    "autoencoder": "recommended × 0.01: test error",
}
# What timm's train.py does, by the same names; targets of zeros leave its loss no gradient.
SCRIPT = """
import sys, timm, torch
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler, dispatch_clip_grad

model = timm.create_model("resnet10t", num_classes=10)
optimizer = create_optimizer_v2(model, opt=sys.argv[1], lr=0.1, weight_decay=0)
scaler = NativeScaler(device="cpu") if "--amp" in sys.argv else None
train_loss_fn, validate_loss_fn = SoftTargetCrossEntropy(), torch.nn.CrossEntropyLoss()
kernel = model.layer1[0].conv1.weight.detach().clone()
with torch.no_grad():
    validate_loss_fn(model(torch.randn(4, 3, 32, 32)), torch.zeros(4, 10))
loss = train_loss_fn(model(torch.randn(4, 3, 32, 32)), torch.zeros(4, 10))
if scaler is None:
    loss.backward()
    dispatch_clip_grad(model.parameters(), 1.0)
    optimizer.step()
else:
    scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
print("moved:", not torch.equal(kernel, model.layer1[0].conv1.weight))
"""


def test_all_are_listed_and_tested():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == ALONE.keys() | {"timm_script"}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}.py]({name}.py)" in readme for name in names)


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", ALONE)
def test_runs(name, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert ALONE[name] in capsys.readouterr().out


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("options", [["sgd"], ["adamw", "--amp"], ["lookahead_sgd"]])
def test_timms_own_script(tmp_path, monkeypatch, capsys, options):
    import timm.optim

    monkeypatch.setattr(timm.optim, "create_optimizer_v2", timm.optim.create_optimizer_v2)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["timm_script.py", str(script), *options])
    runpy.run_path(str(EXAMPLES / "timm_script.py"), run_name="__main__")
    assert "moved: True" in capsys.readouterr().out
