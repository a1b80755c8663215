"""Reports to render."""

import pytest
import torch
from torch import nn

import convsim


@pytest.fixture(scope="session")
def model():
    """A grouped, a 1×1, a one-filter layer, and one on a single pixel."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(),
        nn.Conv2d(12, 6, 1), nn.Conv2d(6, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 4, 1),
    )  # fmt: skip


@pytest.fixture(scope="session")
def images():
    return torch.randn(6, 3, 16, 16, generator=torch.manual_seed(1))


@pytest.fixture(scope="session")
def report(model, images):
    return convsim.measure(model, [images])


@pytest.fixture(scope="session")
def later(model, images):
    """The same layers with other weights, of which one has lost filters."""
    torch.manual_seed(9)
    other = nn.Sequential(*(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3, groups=2)))
    return convsim.measure(other, [images])


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.fixture(scope="session")
def silent(images):
    """Three layers, of which the second puts out zeros, and the third has one map that does."""
    torch.manual_seed(0)
    inner = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Residual(inner), nn.Conv2d(8, 6, 3))
    with torch.no_grad():
        for silenced in (inner.weight, inner.bias, model[2].weight[3], model[2].bias[3]):
            silenced.zero_()
    return convsim.measure(model, [images])
