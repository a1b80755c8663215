"""A share of benchmarks/train_architectures.py, and the gradient of branches that start at zero."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from convsim import Regularizer
from convsim.lab.libraries import library_model

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import train_architectures as benchmark

SHARE = ("lcnet_035", "mobilenetv3_small_050")
RECORDS = {
    record["name"]: record
    for record in benchmark.read_records(benchmark.RECORDS)
    if record.keys() >= benchmark.RUNS.keys()
}


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", SHARE)
def test_the_penalty_starts_where_it_did_and_ends_no_higher_than_without(name):
    with_it, without = (benchmark.train(name, *benchmark.RUNS[r]) for r in ("recommended", "plain"))
    assert with_it["finite"]
    assert without["finite"]
    assert with_it["values"][0] == pytest.approx(RECORDS[name]["recommended"]["values"][0], rel=0.1)
    assert with_it["after"] < without["after"]


def test_the_table_is_that_of_the_records():
    records = benchmark.read_records(benchmark.RECORDS)
    assert benchmark.PAGE.read_text(encoding="utf-8") == benchmark.page(records)


def norm_of_gradients(value, model):
    gradients = torch.autograd.grad(
        value, list(model.parameters()), retain_graph=True, allow_unused=True
    )
    return torch.stack([own.norm() for own in gradients if own is not None]).norm().item()


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("gain", [0.0, 1e-8, 1e-6, 1e-4, 1e-2, 1.0])
def test_branches_that_start_at_zero_have_a_sane_gradient(gain):
    """In nf_* the last convolution of a block has gain 0; with a bias its maps are rounding."""
    images, labels = (part[:8] for part in benchmark.digits())
    model = library_model("timm:nf_resnet26", classes=10, channels=3, pretrained=False)
    regularizer = Regularizer(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv3.gain"):
                assert not parameter.any()
                parameter.fill_(gain)
            elif name.endswith("bias") and "conv" in name:
                parameter.normal_(0, 0.1)
    loss = nn.functional.cross_entropy(model(images), labels)
    penalty = norm_of_gradients(regularizer(), model)
    assert 0 < penalty < norm_of_gradients(loss, model)
