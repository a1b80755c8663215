"""Layers before a ReLU, which hears nothing of what is negative."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsim
from convsim.shrinking import sequence
from convsim.shrinking.rectified import Rectifier
from convsim.shrinking.topology import fates

IMAGES = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(5))
ALL = 10**6


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, end: nn.Module, inplace: bool = False, before: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.end, self.inplace, self.before = nn.BatchNorm2d(3), end, inplace, before

    def forward(self, images: Tensor) -> Tensor:
        inner = self.norm(self.second(torch.relu(self.first(images))))
        if self.inplace:
            inner += images
        else:
            inner = inner + images
        return self.end(inner) + (inner if self.before else 0)


class Shared(nn.Module):
    """An output that others than a ReLU read too, in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.norm, self.way = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), way

    def forward(self, images: Tensor) -> Any:
        raw = self.first(images)
        if self.way == "raw":
            return torch.relu(self.norm(raw)) + raw
        if self.way == "raw, and normalized in a sum":
            return torch.relu(self.norm(raw) + images) + torch.tanh(raw)
        if self.way == "asked for its size":
            out = self.norm(raw)
            return torch.relu(out).reshape(out.size(0), out.dim() - 1, -1)
        out = self.norm(raw)
        if self.way == "added":
            return torch.relu(out + images) + torch.tanh(out)
        if self.way == "turned":
            return torch.relu(out) + out.mT
        return torch.relu(out), out


@pytest.mark.parametrize(
    "way",
    [
        "raw", "raw, and normalized in a sum", "asked for its size", "added", "turned", "returned",
    ],
)  # fmt: skip
def test_others_that_read_are_seen(way):
    (fate,) = fates(Shared(way).eval(), IMAGES[:2]).values()
    assert fate.rectified == (way == "asked for its size")
    assert fate.norm == (None if way.startswith("raw") else "norm")
    assert fate.addition is None or way == "added"


@pytest.mark.parametrize(
    ("network", "rectified"),
    [
        (Block(nn.ReLU()), ["first", "second"]),
        (Block(nn.ReLU(inplace=True), inplace=True), ["first", "second"]),
        (Block(nn.ReLU6()), ["first", "second"]),
        (Block(nn.SiLU()), ["first"]),
        (Block(nn.ReLU(), before=True), ["first"]),
        (Block(nn.Identity()), ["first"]),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), ["0"]),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU()), []),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(-1, 1)), []),
    ],
)
def test_which_layers_nothing_but_a_relu_reads(network, rectified):
    found = fates(network.eval(), IMAGES[:2])
    assert [name for name, fate in found.items() if fate.rectified] == rectified


def test_the_distance_to_targets_is_above_what_a_relu_hears_and_touches_it():
    generator = torch.Generator().manual_seed(0)
    want, told = torch.randn(2, 500, 4, generator=generator, dtype=torch.float64)
    scale = torch.tensor([2.0, -1.5, 1.0, 1e-3], dtype=torch.float64)
    shift = torch.tensor([0.3, -0.2, 0.0, -1e-4], dtype=torch.float64)
    targets = Rectifier(scale, shift).targets(want, told)

    def heard(told: Tensor) -> Tensor:
        return ((scale * want + shift).relu() - (scale * told + shift).relu()).square()

    def fitted(told: Tensor) -> Tensor:
        return (scale * (targets - told)).square()

    more = heard(told) - fitted(told)
    for other in torch.linspace(-5, 5, 201, dtype=torch.float64):
        assert (fitted(told + other) + more >= heard(told + other) - 1e-12).all()


def test_a_channel_of_no_scale_is_told_as_it_was():
    want, told = torch.randn(2, 30, 1)
    for shift in (0.5, 0.0, -0.5):
        targets = Rectifier(torch.zeros(1), torch.tensor([shift])).targets(want, told)
        assert targets.isfinite().all()


def network(end: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12)]
    model = nn.Sequential(*layers, end, nn.Conv2d(12, 8, 1))
    nn.init.normal_(layers[3].bias, -0.5)
    for _ in range(60):
        model(IMAGES)
    return model.eval().requires_grad_(False)


def test_a_batchnorm_takes_a_constant_once():
    """W·A puts it into the mean, and the fit finds it again."""
    model = network(nn.Tanh())
    small = convsim.shrink(model, [IMAGES], channels=0.5, layers=["0"], positions=ALL).model
    means = [net[:4](IMAGES).mean((0, 2, 3)) for net in (model, small)]
    torch.testing.assert_close(*means, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bias", [-0.5, -1.5, -2.0])
def test_a_relu_hears_what_is_nearer_to_before_than_by_least_squares(
    bias: float, monkeypatch: pytest.MonkeyPatch
):
    model = network(nn.ReLU())
    nn.init.constant_(model[3].bias, bias)
    errors = []
    for rounds in (0, 1, 4, 16):
        monkeypatch.setattr(sequence, "_ROUNDS", rounds)
        small = convsim.shrink(model, [IMAGES], channels=0.5, layers=["0"], positions=ALL).model
        errors.append(float((model[:5](IMAGES) - small[:5](IMAGES)).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.97 * errors[0]
