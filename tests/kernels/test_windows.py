"""Windows of what a layer reads, against the layers' own maps."""

import pytest
import torch
from torch import nn

from convsim.kernels import conv_layers
from convsim.kernels.windows import ALL, sample_windows
from seeds import reseed

pytestmark = pytest.mark.core

LAYERS = [  # every kind of convolution, its input
    (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9, 8)),
    (lambda: nn.Conv2d(4, 6, (3, 2), padding=2, dilation=2, padding_mode="reflect"), (2, 4, 9, 8)),
    (lambda: nn.Conv2d(4, 4, 7, padding=3, groups=4), (2, 4, 8, 8)),
    (lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    (lambda: nn.Conv1d(4, 4, 3, padding="same", groups=4), (2, 4, 9)),
    (lambda: nn.Conv3d(2, 3, 2, stride=(2, 1, 1)), (2, 2, 4, 4, 4)),
    (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 5, 6),
    ),
    (lambda: nn.ConvTranspose1d(4, 6, 3, stride=3, dilation=2, padding=5), (2, 4, 8)),
]


def setting(build, shape):
    """Draw a layer and its input; return its maps (M, everything) without bias too."""
    reseed()
    module = build().double()
    inputs = torch.randn(shape, dtype=torch.float64)
    maps = module(inputs) - module.bias.reshape(-1, *[1] * (len(shape) - 2))
    return module, inputs, maps.transpose(0, 1).flatten(1)


@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_windows_times_filters_are_the_layers_own_maps(build, shape):
    module, inputs, maps_MP = setting(build, shape)
    (layer,) = conv_layers(nn.Sequential(module))
    windows_GSR = sample_windows(module, layer.bank(), inputs, ALL)
    made = windows_GSR @ layer.bank().filters.flatten(2).mT
    torch.testing.assert_close(made.transpose(0, 1).flatten(1).mT, maps_MP)
