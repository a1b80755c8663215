"""The real weight lists that the penalties are timed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from convsim.kernels import conv_layers
from convsim.lab.models import build_model


def _model(name: str) -> Callable[[], nn.Module]:
    return lambda: build_model(name, classes=1000)


def _resnet18() -> nn.Module:
    """Take ResNet-18's convolutions, with ImageNet's 7×7 stem."""
    convolutions = [layer.module for layer in conv_layers(build_model("resnet18", classes=10))]
    return nn.ModuleList([nn.Conv2d(3, 64, 7, stride=2), *convolutions[1:]])


def _torchvision(name: str) -> Callable[[], nn.Module]:
    """List the convolutions of a torchvision model: channels in and out, kernel, stride, groups."""
    layers = json.loads(Path(__file__).with_name("layers.json").read_text())[name]
    return lambda: nn.ModuleList(
        [nn.Conv2d(*sizes, tuple(k), tuple(s), groups=groups) for *sizes, k, s, groups in layers]
    )


def _unet3d() -> nn.Module:
    """List the convolutions of 3D U-Net (Çiçek et al. 2016, figure 2)."""
    down = [(1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    up = [(512 + 256, 256), (256, 256), (256 + 128, 128), (128, 128), (128 + 64, 64), (64, 64)]
    return nn.ModuleList(
        [nn.Conv3d(inputs, outputs, 3) for inputs, outputs in down + up]
        + [nn.ConvTranspose3d(width, width, 2, stride=2) for width in (512, 256, 128)]
    )


def _layer(filters: int, channels: int = 64) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(channels, filters, 3)


CASES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": _resnet18,
    "resnet50": _model("resnet50"),
    "vgg19": _model("vgg19"),
    "wrn28-10": _model("wrn28-10"),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large"),
    "convnext_tiny": _torchvision("convnext_tiny"),
    "unet3d": _unet3d,
}
LAYERS = {f"layer-{m}": _layer(m) for m in (64, 128, 256, 512, 1024, 2048, 4096)}
