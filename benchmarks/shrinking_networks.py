"""A network with depthwise convolutions for photographs of 32×32: `shrinking_networks:mobile`."""

from __future__ import annotations

from torch import nn

STEM, CLASSES = 32, 10
BLOCKS = ((64, 1), (64, 1), (128, 2), (128, 1), (192, 1))
"""What each block puts out, and its stride."""


def unit(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolve, normalize, activate; depthwise if as many maps are put out by a 3×3 kernel."""
    groups = inputs if inputs == outputs and kernel > 1 else 1
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def mobile() -> nn.Module:
    """Build a small MobileNet (Howard et al. 2017) with a stem for small images."""
    layers = unit(3, STEM, 3, 2)
    width = STEM
    for outputs, stride in BLOCKS:
        layers += [*unit(width, width, 3, stride), *unit(width, outputs, 1)]
        width = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*layers)
