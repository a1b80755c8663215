"""The networks: those that train on 32×32 photographs, ResNet-50 at 224×224, and weight lists."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from convsim.lab.models import build_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from rivals import RIVALS, by_autograd
from weight_lists import CASES

__all__ = ["NETWORKS", "RIVALS", "WEIGHTS", "by_autograd", "small_classifier"]

WEIGHTS = {name: CASES[name] for name in ("resnet50", "resnet18", "vgg19", "convnext_tiny")}
"""Whose convolutions the penalties are timed on alone."""


def _resnet50(classes: int) -> nn.Module:
    """Build ResNet-50 with the stem for 224×224 (He et al. 2015, table 1)."""
    layers = list(build_model("resnet50", classes=classes).children())
    stem = [
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]  # fmt: skip
    return nn.Sequential(*stem, *layers[3:])


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "cnn": lambda classes: build_model("cnn", classes=classes),
    "resnet18": lambda classes: build_model("resnet18", classes=classes),
    "vgg19": lambda classes: build_model("vgg19", classes=classes),
    "resnet50": _resnet50,
    "tiny": lambda classes: build_model("cnn", classes=classes, width=4),
}


def small_classifier() -> nn.Module:
    """Build a network with a layer of each kind, for comparing gradients.

    SiLU has no kink at which float32 and float64 could part.
    """
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.SiLU(),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=4), nn.SiLU(),
        nn.Conv2d(32, 48, 1), nn.SiLU(), nn.Conv2d(48, 16, 5, padding=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
